"""Oracle: value loss with clipping as in openai/baselines ppo2: half the larger of two squared errors."""


def ppo_value(
    values_BT: list[list[float]],
    old_values_BT: list[list[float]],
    returns_BT: list[list[float]],
    mask_BT: list[list[bool]],
    clip: float | None,
) -> list[list[float]]:
    """Loss of each token, 0 where uncounted."""
    loss_BT = [[0.0] * len(row) for row in values_BT]
    for b, row in enumerate(values_BT):
        for t, value in enumerate(row):
            if not mask_BT[b][t]:
                continue
            errors = [(value - returns_BT[b][t]) ** 2]
            if clip is not None:
                move = min(max(value - old_values_BT[b][t], -clip), clip)
                errors.append((old_values_BT[b][t] + move - returns_BT[b][t]) ** 2)
            loss_BT[b][t] = max(errors) / 2
    return loss_BT
