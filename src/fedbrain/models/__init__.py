"""The image encoder, the classification heads and the embeddings cached between them."""
