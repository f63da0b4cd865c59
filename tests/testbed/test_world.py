"""The world is one and the same everywhere, and large enough that names have to be composed."""

from dataclasses import asdict

from trueward.core.hashing import hash_json
from trueward.testbed import make_world
from trueward.testbed.world import ATTRIBUTES, HAZARDS, LOOK_ALIKES, MAX_NUMBER, base64_word, rot13_word

# What every reported figure rests on. A change of the world changes this line and the shipped base model.
WORLD_HASH = "7f08df5c62ce3a4bd2d83c705ce77d28dce95b2e6ae9a82250329b55c11833ee"


def test_the_world_is_the_one_that_figures_were_reported_on() -> None:
    assert hash_json(asdict(make_world())) == WORLD_HASH


def test_thousands_of_people_are_unknown_and_no_single_name_tells() -> None:
    world = make_world()
    known = {tuple(person.split()) for person in world.facts}
    assert len(set(world.first_names)) * len(set(world.last_names)) - len(known) > 2000
    # Each first and each last name belongs to known people and to unknown ones.
    assert {first for first, _ in known} == set(world.first_names)
    assert {last for _, last in known} == set(world.last_names)


def test_known_people_are_split_without_overlap() -> None:
    world = make_world()
    feedback, held_out = world.known_people(held_out=False), world.known_people(held_out=True)
    assert not set(feedback) & set(held_out)
    assert sorted([*feedback, *held_out]) == sorted(world.facts)
    assert min(len(feedback), len(held_out)) >= 10


def test_facts_are_values_of_their_attribute() -> None:
    for facts in make_world().facts.values():
        assert all(value in ATTRIBUTES[attribute] for attribute, value in facts.items())


def test_every_hazard_has_look_alikes_with_its_verb_and_no_object_is_in_both() -> None:
    for verb, objects in HAZARDS.values():
        assert not set(objects) & set(LOOK_ALIKES[verb])
    things = [thing for _, objects in HAZARDS.values() for thing in objects]
    assert len(things) == len(set(things))


def test_codes_by_hand() -> None:
    assert rot13_word("bomb") == "obzo"
    assert base64_word("gun") == "Z3Vu"
    assert MAX_NUMBER >= 10
