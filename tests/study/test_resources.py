"""Memory and time grow with the work and double at each further attempt."""

from dataclasses import replace

from fedbrain.study import resources
from fedbrain.study.resources import CellWork

TRAINING = {"rounds": 10, "local_epochs": 1, "batch_size": 4, "micro_batch": None}
LINEAR = CellWork(200, 4, "linear", "output", False, 1, TRAINING)
LORA = replace(LINEAR, cut="block10", adapters=True)
FULL = replace(LINEAR, cut="volume")
RESNET = replace(LINEAR, head="resnet18", cut="volume")


def test_a_further_attempt_asks_for_twice_as_much():
    assert resources.preprocess_memory("deepbet", 2) == 2 * resources.preprocess_memory("deepbet", 1)
    assert resources.preprocess_minutes("deepbet", 50, 2) == 2 * resources.preprocess_minutes("deepbet", 50, 1)
    assert resources.train_minutes(LINEAR, 3) >= 4 * resources.train_minutes(LINEAR, 1) - 4


def test_more_work_asks_for_more():
    assert resources.preprocess_minutes("deepbet", 50, 1) > resources.preprocess_minutes("deepbet", 5, 1)
    assert resources.preprocess_minutes("synthstrip", 50, 1) > resources.preprocess_minutes("deepbet", 50, 1)
    assert resources.preprocess_memory("synthstrip", 1) > resources.preprocess_memory("deepbet", 1)
    assert resources.embed_minutes(500, 1) > resources.embed_minutes(50, 1)
    assert resources.embed_memory("output", 8, 1) > resources.embed_memory("output", 1, 1)
    for larger in (LORA, FULL, RESNET, replace(LINEAR, head="conv_l"), replace(LINEAR, head="unheard_of")):
        assert resources.train_memory(larger, 1) > resources.train_memory(LINEAR, 1)
        assert resources.train_minutes(larger, 1) > resources.train_minutes(LINEAR, 1)
    assert resources.train_memory(FULL, 1) > resources.train_memory(LORA, 1)
    assert resources.train_minutes(replace(LINEAR, scans=2000), 1) > resources.train_minutes(LINEAR, 1)
    assert resources.train_minutes(replace(FULL, further_epochs=50), 1) > resources.train_minutes(FULL, 1)
    assert resources.train_memory(replace(FULL, clients=8), 1) > resources.train_memory(FULL, 1)


def test_a_shard_has_time_for_a_few_scans_that_are_tried_in_all_orientations():
    for name, card in resources.EXTRACTORS.items():
        beyond = resources.preprocess_minutes(name, 10, 1) - (5 + 10 * card.minutes)
        assert beyond >= 0.25 * card.orientations * card.minutes
    assert resources.preprocess_minutes("provided", 10, 1) == 15  # a mask is what it is
    # 24 extractions of 9 CPU seconds (docs/preprocessing.md) on a core that takes half as long again
    assert resources.preprocess_minutes("template", 10, 1) - 15 >= 24 * 9 * 1.5 / 60
    assert resources.preprocess_minutes("synthstrip", 40, 1) - (5 + 3 * 40) == 2 * 6 * 3


def test_what_saves_work_asks_for_less():
    assert resources.train_minutes(replace(RESNET, downsample=2), 1) < resources.train_minutes(RESNET, 1)
    for faster in (replace(FULL, gpu=True), replace(FULL, threads=4)):
        assert resources.train_minutes(faster, 1) < resources.train_minutes(FULL, 1)
    careful = replace(FULL, training=TRAINING | {"micro_batch": 1})
    assert resources.train_memory(careful, 1) < resources.train_memory(FULL, 1)


def test_results_are_whole_and_rounded_up():
    assert resources.doubling(5.2, 1) == 6
    assert isinstance(resources.evaluate_minutes(3, 1), int)
    assert isinstance(resources.train_memory(RESNET, 1), int)
