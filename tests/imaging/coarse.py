"""A recipe that is coarse and short, for tests that are about the shard and not about the fit; their heads are balls."""

COARSE = {
    "extractor": "provided",
    "bias_field_spacing": 8.0,
    "bias_field_iterations": [2],
    "registration_resolution": 4,
    "registration_iterations": [3],
    "registration_search_below": 0,
    "registration_least_similarity": 0,
}
