"""Register tokenizer, image processor and processor with transformers' Auto classes.

register_processing()
AutoTokenizer.from_pretrained("checkpoint", trust_remote_code=True)  # ours; no file of the folder is executed
"""

from transformers import CONFIG_MAPPING, AutoImageProcessor, AutoProcessor, AutoTokenizer, PretrainedConfig

from qwen_vl.processing.image_processor import QWenImageProcessor
from qwen_vl.processing.processor import QWenVLProcessor
from qwen_vl.processing.tokenization import QWenTokenizer


class _QWenProcessingKey(PretrainedConfig):
    """A configuration that no checkpoint has.

    AutoTokenizer executes the folder's code with trust_remote_code=True if a tokenizer is registered for the folder's own
    configuration class; under another key it takes the registered class of the same name instead (transformers 5.23).
    """

    model_type = "qwen_vl_processing_key"


def register_processing() -> None:
    """Register the classes; safe to call again.

    If the model's configuration is registered already, AutoProcessor also finds the processor in released folders, which
    have no processor files.
    """
    AutoTokenizer.register(_QWenProcessingKey, slow_tokenizer_class=QWenTokenizer, exist_ok=True)
    for key in [_QWenProcessingKey, *([CONFIG_MAPPING["qwen"]] if "qwen" in CONFIG_MAPPING else [])]:
        AutoImageProcessor.register(key, image_processor_classes={"pil": QWenImageProcessor}, exist_ok=True)
        AutoProcessor.register(key, QWenVLProcessor, exist_ok=True)
