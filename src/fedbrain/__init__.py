"""Federated fine-tuning of a 3D foundation model for dementia classification from brain MRI."""
