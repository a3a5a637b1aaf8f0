"""Chat templates that render like those of real checkpoints."""

PARTS = """
{%- macro parts(content) -%}
  {%- if content is string -%}{{ content }}
  {%- else -%}
    {%- for part in content -%}
      {%- if part.type == 'image' -%}
        {%- set seen.images = seen.images + 1 -%}
        {{- ('Picture ' ~ seen.images ~ ': ') if add_vision_id -}}
        <|vision_start|><|image_pad|><|vision_end|>
      {%- elif part.type == 'video' -%}
        {%- set seen.videos = seen.videos + 1 -%}
        {{- ('Video ' ~ seen.videos ~ ': ') if add_vision_id -}}
        <|vision_start|><|video_pad|><|vision_end|>
      {%- else -%}{{ part.text }}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- set seen = namespace(images=0, videos=0) -%}
"""
TURN = "{{ '<|im_start|>' ~ message.role ~ '\\n' ~ text ~ '<|im_end|>\\n' }}"
QWEN2 = (
    PARTS
    + "{%- if messages[0].role != 'system' -%}"
    + "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif -%}"
    + "{%- for message in messages -%}{%- set text = parts(message.content) -%}"
    + TURN
    + "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
QWEN3 = (
    PARTS
    + "{%- for message in messages -%}{%- set text = parts(message.content) -%}"
    + TURN
    + "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
QWEN35 = (
    PARTS
    + "{%- for message in messages -%}{%- set text = parts(message.content)|trim -%}"
    + "{%- if message.role == 'assistant' and '</think>' in text -%}"
    + "{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"
    + TURN
    + "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n<think>\\n' }}"
    + "{%- if enable_thinking is defined and enable_thinking is false -%}{{ '\\n</think>\\n\\n' }}{%- endif -%}"
    + "{%- endif -%}"
)
QWEN38 = (  # keeps the thoughts of earlier answers, and shows an empty thought where there was none
    QWEN35.replace(
        "{%- if message.role == 'assistant' and '</think>' in text -%}", "{%- if message.role == 'assistant' -%}"
    ).replace("text.split('</think>')[-1].lstrip('\\n')", "'<think>\\n\\n</think>\\n\\n' ~ text")
)
THINKING = (
    PARTS
    + "{%- for message in messages -%}{%- set text = parts(message.content) -%}"
    + "{%- if message.role == 'assistant' and '</think>' in text -%}"
    + "{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"
    + TURN
    + "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n<think>\\n' }}{%- endif -%}"
)
