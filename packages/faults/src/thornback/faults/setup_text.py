"""Reads why a `runtime_env` could not be built: the text of Ray's `RuntimeEnvSetupError`. Pure.

The text is a traceback of Ray's agent. If pip, uv or conda failed, the last 50 lines that it wrote
follow, and those decide. Sources: ray 2.60 `_private/runtime_env`, pip 26, uv 0.9 (texts seen).
"""

from __future__ import annotations

import re

_LINES = 12
_LINE_CHARS = 300

# The patterns are only strings: `re` compiles and caches them when they are needed, not at import.
_TOOL = r"\bLast \d+ lines of stdout:"
_DECISIVE = r"""(?ix)
    ^ (?: error | fatal | hint ) \s* : | ^ [\u00d7╰]         # pip, git, uv
  | ^ WARNING:\ Retrying                                # pip: the network
  | ^ no\ such\ option                                  # pip
  | Failed\ to\ install\ runtime_env                    # Ray: setup_timeout_seconds
  | ^ (?! \S*TimeoutError) [\w.]* (?: Error | Exception | NotFound ) :\   # the end of a traceback
"""
# A wrong "final" ends a stage because a node is bad, or because the network was down. So whatever
# may come from either is not final, also where pip adds that it found no matching distribution.
_MAY_PASS = r"""(?ix)
    connection\ (?: broken | refused | reset | aborted | timed )
  | timed\ out | (?: read | connect )\ ?timeout | timeouterror | temporary\ failure
  | name\ resolution | failed\ to\ resolve | name\ or\ service\ not\ known
  | network\ is\ unreachable | max\ retries\ exceeded | request\ failed\ after
  | error\ sending\ request | incompleteread | remotedisconnected | protocolerror | proxyerror
  | sslerror | could\ not\ fetch\ url
  | (?: error | status | code ) :? \ 5\d\d | \b 5\d\d \ (?: server | client )\ error
  | \b errno \b | os\ error | no\ space\ left | cannot\ allocate | memoryerror | killed | sigkill
"""
_FINAL = r"""(?ix)
    no\ matching\ distribution\ found | no\ solution\ found\ when\ resolving
  | resolutionimpossible | conflicting\ dependencies | invalid\ requirement | no\ such\ option
  | requires\ a\ different\ python | subprocess-exited-with-error | metadata-generation-failed
  | failed\ to\ build | failed\ to\ parse | resolvepackagenotfound | packagesnotfounderror
  | unsatisfiableerror | nosuchkey | nosuchbucket | http\ error\ 404 | 404\ client\ error
  | exceeds\ the\ maximum\ size
"""
# Ray wants these on every node: their absence is a matter of the image, not of one bad machine.
_MISSING = r"""(?ix)
    please\ install\ virtualenv | you\ must\ `pip\ install | could\ not\ find\ conda\ executable
  | no\ such\ file\ or\ directory:\ '(?: conda | podman )'
"""


def is_final(text: str) -> bool:
    """Return whether building it again would fail again, on any node: a requirement that does not
    exist, contradicts another, or does not build; a tool that is not installed. False where the
    network or the machine may be to blame."""
    said = setup_reason(text)
    if re.search(_MISSING, said):
        return True
    return re.search(_FINAL, said) is not None and re.search(_MAY_PASS, said) is None


def setup_reason(text: str) -> str:
    """Return the decisive lines of the text of Ray's `RuntimeEnvSetupError`, at most a dozen: what
    pip, uv or conda said, else the exception at the end of the traceback, else the last line.

    What it returns, it returns unchanged. Secrets are not hidden: a `Fault` hides them.
    """
    parts = re.split(_TOOL, text)
    said = re.sub(r"\n\s*cause: ", ": ", parts[-1])  # uv: belongs to the line before
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    found = [line for line in lines if re.search(_DECISIVE, line)]
    if len(parts) == 1 and "Traceback (most recent call last)" in text:
        found = found[-1:]  # of a chain of exceptions the last one counts
    else:
        # A compiler that was killed is named in the middle of its output.
        known = dict.fromkeys(found)
        known |= dict.fromkeys(line for line in lines if re.search(_MAY_PASS, line))
        found = [line for line in dict.fromkeys(lines) if line in known]
    kept = found[-_LINES:] or lines[-1:]
    return "\n".join(line[:_LINE_CHARS].rstrip() for line in kept)
