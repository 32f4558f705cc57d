"""Models with random weights whose template treats thoughts as Qwen3's does.

Thoughts of turns before the user's last question are left out of the prompt; those of the turn
that is going on, which calls tools, stay. So a prompt is not just the last one and more.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

from engine import embedded
from tests.models import make

TEMPLATE = """
{%- set ns = namespace(asked=-1) -%}
{%- for m in messages if m.role == 'user' -%}{%- set ns.asked = messages.index(m) -%}{%- endfor -%}
{%- set opening = messages[0].content if messages[0].role == 'system' else '' -%}
{%- if opening or tools -%}
<|im_start|>system
{{ opening }}
{%- for tool in tools or [] %}
{{ tool | tojson }}
{%- endfor -%}
<|im_end|>
{% endif -%}
{%- for m in messages -%}
{%- if m.role == 'system' and not loop.first -%}
{{ raise_exception('System message must be at the beginning.') }}
{%- elif m.role == 'user' -%}
<|im_start|>user
{{ m.content }}<|im_end|>
{% elif m.role == 'tool' -%}
{%- if loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}
<tool_response>
{{ m.content }}
</tool_response>
{%- if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>
{% endif -%}
{%- elif m.role == 'assistant' -%}
<|im_start|>assistant
{% if loop.index0 > ns.asked and (loop.last or m.reasoning_content) -%}
<think>
{{ (m.reasoning_content or '').strip('\\n') }}
</think>

{% endif -%}
{{ m.content }}
{%- for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor -%}
<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
<think>
{% if enable_thinking is defined and not enable_thinking %}
</think>

{% endif -%}
{%- endif -%}
"""
VOCABULARY, CONTEXT = 4096, 32768  # the embedded model's tokens


@functools.cache
def thinking_dir(family: str) -> Path:
    """The family's model in a directory that lives as long as the process."""
    parent = Path(tempfile.mkdtemp(prefix="commons-thinking-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}  # the prompts are long
    path = make(family, parent / f"thinking-{family}", **sizes, **heads)
    shutil.copy(embedded.path() / "tokenizer.json", path / "tokenizer.json")
    settings = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = TEMPLATE.lstrip("\n")
    (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path
