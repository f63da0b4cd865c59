"""Oracle: negative log-likelihood of the demonstrated tokens, token by token."""


def sft(
    logps_BT: list[list[float]], mask_BT: list[list[bool]], weights_BT: list[list[float]]
) -> list[list[float]]:
    """-weight * logp at trained tokens, 0 at others."""
    loss_BT: list[list[float]] = []
    for logps_T, mask_T, weights_T in zip(logps_BT, mask_BT, weights_BT, strict=True):
        row = []
        for logp, counted, weight in zip(logps_T, mask_T, weights_T, strict=True):
            row.append(-weight * logp if counted else 0.0)
        loss_BT.append(row)
    return loss_BT
