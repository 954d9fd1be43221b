"""Text and pictures to tensors: tokenizer, picture loader, image processor, processor."""
