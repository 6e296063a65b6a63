"""Memory and time grow with the work and double at each further attempt."""

from fedbrain.study import resources


def test_a_further_attempt_asks_for_twice_as_much():
    assert resources.preprocess_memory(2) == 2 * resources.preprocess_memory(1)
    assert resources.train_minutes(100, 10, 1, "conv_s", 3) >= 4 * resources.train_minutes(100, 10, 1, "conv_s", 1) - 4


def test_more_work_asks_for_more():
    assert resources.embed_minutes(500, 1) > resources.embed_minutes(50, 1)
    assert resources.embed_memory(50, 8, 1) > resources.embed_memory(50, 1, 1)
    assert resources.train_memory(2000, "linear", 1) > resources.train_memory(200, "linear", 1)
    assert resources.train_minutes(2000, 50, 1, "conv_l", 1) > resources.train_minutes(2000, 50, 1, "linear", 1)


def test_results_are_whole_and_rounded_up():
    assert resources.doubling(5.2, 1) == 6
    assert isinstance(resources.evaluate_minutes(3, 1), int)
