"""The Qwen-VL model as transformers classes: configuration, vision tower, resampler, language model and the joined causal language model.

Everything here takes tensors and returns tensors. The one bridge to files is the replaceable hook `QWenLMHeadModel.picture_loader`.
"""
