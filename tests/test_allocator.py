import os
import subprocess
import sys

import pytest
import torch

PINNED = """
import sys
if sys.argv[1] == "give back":
    from lorafit.allocator import give_back_at_once
    give_back_at_once()
import psutil, torch
mebibytes = lambda: psutil.Process().memory_info().rss / 2**20
del (first := [torch.ones(2**21)])[:]  # freed, 8 MB: from here on glibc keeps pieces of that size
before = mebibytes()
many = [torch.ones(2**21) for _ in range(40)]
del many[:-1]  # the last lies above the others
print(mebibytes() - before)
"""
PAGES = """
import lorafit.cli.main as cli, os
try:
    cli.main(["--version"])
finally:
    print(os.environ["THP_MEM_ALLOC_ENABLE"], os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"], sep=",")
"""
SHAPES = """
from lorafit.allocator import tune_torch
tune_torch()
import psutil, torch
x, weight = torch.randn(1400, 640).bfloat16(), torch.randn(2048, 640).bfloat16()
torch.nn.functional.linear(x, weight)
before = psutil.Process().memory_info().rss
for rows in range(600, 1400):
    torch.nn.functional.linear(x[:rows], weight)
print((psutil.Process().memory_info().rss - before) / 2**20)
"""
glibc = pytest.mark.skipif(sys.platform != "linux", reason="about glibc")


def run(code: str, *words: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return done.stdout.split()[-1]


@glibc
def test_what_is_freed_between_tensors_in_use_is_given_back():
    assert float(run(PINNED, "give back")) < 40  # 8 in use


@glibc
def test_a_threshold_of_the_user_stays():
    assert float(run(PINNED, "give back", MALLOC_MMAP_THRESHOLD_=str(2**25))) > 200


@glibc
def test_the_command_line_tunes_torch_unless_told_otherwise():
    assert run(PAGES) == "1,256"
    assert run(PAGES, THP_MEM_ALLOC_ENABLE="0", ONEDNN_PRIMITIVE_CACHE_CAPACITY="7") == "0,7"


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="products in bfloat16 are emulated")
def test_products_of_many_shapes_in_bfloat16_keep_little_memory():
    assert float(run(SHAPES)) < 1000  # 3,000 by itself
