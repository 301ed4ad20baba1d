"""Secrets in texts: what is hidden, what stays, and that no text takes long."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.faults import Redactor, looks_secret, redact, safe
from thornback.faults.redaction import known_secrets

V = "S3cr3tV4lue"
SHAPES = {
    "user of a URL": f"https://user:{V}@host/x",
    "token as user of a URL": f"https://{V}{V}@github.com/x",
    "token with an empty password": f"https://{V}:@github.com/x",
    "password with @": f"postgres://u:p@{V}@h/db",
    "password with /": f"postgres://u:a/{V}@h/db",
    "empty user": f"redis://:{V}@h",
    "long password": f"ftp://u:{'x' * 5000}{V}@h",
    "AccountKey": f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={V}==;",
    "SAS": f"https://a.blob/x?sv=1&sig={V}",
    "signature of GCS": f"https://x?X-Goog-Signature={V}&y=1",
    "token of AWS": f"https://x?X-Amz-Security-Token={V}",
    "option": f"--password {V}",
    "token option": f"curl --token {V} x",
    "list of options": f"['mysql', '--password', '{V}']",
    "sentence": f"password is {V}",
    "pwd": f"pwd={V}",
    "variable": f"DB_PASSWD={V}",
    "PGPASSWORD": f"PGPASSWORD={V}",
    "token of YAML": f"token: {V}",
    "header": f"X-Api-Key: {V}",
    "two words": f"API key: {V}",
    "header in a dict": f"{{'Authorization': 'Bearer {V}'}}",
    "header in a tuple": f"[('authorization', '{V}')]",
    "basic": f"Authorization: Basic {V}=",
    "unknown scheme": f"Authorization: Sesame {V}",
    "cookie": f"Cookie: session={V}; other={V}",
    "cookie in a dict": f"{{'cookie': 'a=b; sid={V}'}}",
    "cookies argument": f"get(url, cookies={{'sid': '{V}'}})",
    "cookie jar": f"<RequestsCookieJar[<Cookie sid={V} for localhost/>]>",
    "auth argument": f"get(url, auth=('me', '{V}'))",
    "password in a dict": f"{{'password': '{V}'}}",
    "bytes": f"{{'password': b'{V}'}}",
    "JSON": f'{{"secretKey": "{V}"}}',
    "JSON, escaped": f'{{\\"password\\": \\"{V}\\"}}',
    "JSON, escaped twice": f'{{\\\\\\"password\\\\\\": \\\\\\"a {V}\\\\\\"}}',
    "escaped quote inside": f'"password": "a\\"{V}"',
    "quoted, with spaces": f"password='hunter 2 {V}'",
    "quoted, cut off": f"password='hunter 2 {V}",
    "argument": f"connect(password={V!r}, host='x')",
    "repr of a secret": f"Secret(value='{V}')",
    "XML": f"<password>{V}</password>",
    "YAML, next line": f"a: 1\npassword:\n  {V}\n",
    "nested YAML": f"credentials:\n  password: {V}",
    "another name first": f"password: token={V}",
    "Hugging Face": "hf_" + "a" * 34,
    "OpenAI": "sk-proj-" + "a" * 40,
    "Anthropic": "sk-ant-api03-" + "a" * 40,
    "Google": "AIza" + "SyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY",
    "Google OAuth": "ya29." + "a" * 40,
    "Slack": "xoxb-123456789012-" + "a" * 24,
    "Slack hook": f"https://hooks.slack.com/services/T000/B000/{V}{V}",
    "GitLab": "glpat-" + "a" * 20,
    "GitHub": "ghs_" + "a" * 36,
    "GitHub, fine-grained": "github_pat_" + "A" * 40,
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0." + "c" * 40,
    "npm": "npm_" + "a" * 36,
    "PyPI": "pypi-" + "a" * 60,
    "Stripe": "sk_live_" + "a" * 24,
    "SendGrid": f"SG.{'a' * 22}.{'b' * 43}",
    "Databricks": "dapi" + "0a" * 16,
    "AWS key id": "ASIA" + "A" * 16,
    "wandb": "WANDB_API_KEY=" + "a" * 40,
    "PEM": f"-----BEGIN PRIVATE KEY-----\nMIIE{'a' * 60}\n{V}\n-----END PRIVATE KEY-----",
    "PEM on one line": f"'-----BEGIN RSA PRIVATE KEY-----\\nMIIE{'a' * 60}\\n{V}==\\n",
    "end of a PEM": f"{'a' * 64}\n{V}==\n-----END OPENSSH PRIVATE KEY-----",
    "encrypted PEM, cut off": f"-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n{V * 6}",
}


@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES.keys())
def test_redact_of_a_known_shape_hides_the_secret(text: str) -> None:
    shown = redact(f"before\n{text}\nafter")
    assert V not in shown
    assert text not in shown
    assert "***" in shown
    assert shown.startswith("before\n")
    assert shown.endswith("\nafter")
    assert redact(shown) == shown


HARMLESS = [
    "token: unexpected ';'",
    "unexpected token: }",
    "Unexpected token < in JSON at position 0",
    "primary key: id",
    "primary key=id",
    "KeyError: 'api_key'",
    "KeyError: 'password'",
    "max_tokens=512",
    "max_tokens of 5",
    "tokenizer=gpt2, eos_token='</s>', pad_token=<pad>",
    "text_key=content",
    "http://host:80/a@b",
    "http://host:8080/users/me@example.com",
    "ssh://git@host/a",
    "git@github.com:a/b.git",
    "abfs://a-long-container-name@account.dfs.core.windows.net/x",
    "PWD=/home/me OLDPWD=/home",
    "password is required, and the token is invalid",
    "password_file=/run/secrets/db",
    "botocore.exceptions.NoCredentialsError: Unable to locate credentials",
    "google.auth.exceptions.DefaultCredentialsError: Could not find them",
    "InvalidTokenError('it has expired')",
    "raise KeyError(key)",
    "for key, value in rows.items():",
    "def load(path, token: str | None = None, password: str = None):",
    "if not token:",
    "secretary: Bob",
    "author: me, authority: none, passed: 3, compass: north",
    "usage: prog [--token TOKEN] [--max-tokens N] [--password-file FILE]",
    "signal=9, design: new, significant=yes",
    "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n-----END PUBLIC KEY-----",
    "the file holds no -----BEGIN PRIVATE KEY----- at line 1",
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "/usr/lib/python3.11/site-packages/keyring/backends/token_store.py:12",
    'File "/home/me/secrets.py", line 12, in read_key\n    return store[key]',
    "a = b + c",
]


@pytest.mark.parametrize("text", HARMLESS)
def test_redact_of_harmless_text_returns_it_unchanged(text: str) -> None:
    assert redact(text) == text


def test_redact_of_a_bare_aws_secret_key_leaves_it() -> None:
    """As the documentation says: nothing tells it from a path or a digest."""
    assert redact("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY").startswith("wJalr")


PARTS = [
    *("password", "secret", "token", "api", " key", "-key", "auth", "cookie", "sig", "Bearer "),
    *(
        "=",
        ":",
        "://",
        "@",
        "&",
        "'",
        '"',
        '\\"',
        '\\\\"',
        "x",
        "***",
        "*",
        ",",
        ";",
        "(",
        ")",
        "<",
    ),
    *(">", "{", "}", "|", " is ", " was ", "--", "Authorization: ", "hf_", "sk-", "eyJ", "."),
    *("a1B2c3D4", "A" * 20, "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"),
    *(" ", "\n", "  ", "\u0130"),
]
texts = st.lists(st.sampled_from(PARTS), max_size=25).map("".join)


@given(texts)
def test_redact_of_its_own_result_changes_nothing(text: str) -> None:
    once = redact(text)
    assert len(once) <= len(text)
    assert redact(once) == once


@given(texts, st.integers(1, 300))
def test_safe_of_its_own_result_changes_nothing(text: str, limit: int) -> None:
    once = safe(text, limit)
    assert len(once) <= limit
    assert safe(once, limit) == once


HOSTILE = [
    *(
        "password=",
        "password='",
        'password=\\"',
        "password:\n  x\n",
        "password=***",
        "pwd=/",
        "token=[",
    ),
    *("token: aaaaaaaaaaaaaaaa", "--token ", "'password', '", "Secret('", "<password>", "key"),
    *("secret-", "secret\\\\'\"", "authorization: ", "authorization: ***", "auth=(", "cookie: ***"),
    *("cookie={***", "<Cookie a", "password is ", "password is 1", "://", "://a:", "://a:b@"),
    *("https://x@", "eyJaaaaaaaa-", "SG.aaaaaaaaaaaaaaaaaa", "hf_", "xoxb-", "Bearer aaaaaaaa"),
    *("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"),
    "AAAAAAAAAAAAAAAAAAAA\n-----END PRIVATE KEY-----\n",
]


@pytest.mark.parametrize("part", HOSTILE)
def test_redact_of_a_hostile_text_takes_time_in_proportion(part: str) -> None:
    """Of 100,000 characters. A quadratic cost would be far more, also on a busy machine."""
    text = part * (100_000 // len(part)) + "@'"
    began = time.process_time()
    redact(text)
    assert time.process_time() - began < 1.5


def test_safe_of_a_huge_text_finds_secrets_across_the_cuts() -> None:
    secret = f"password='{'x ' * 2000}{V}'"
    for limit in (500, 4000, 16_000):
        for at in (limit // 4 - 2000, limit // 4 - 10, 0):
            text = "a " * (max(at, 0) // 2) + secret + " b" * 2_000_000
            assert V not in safe(text, limit)
            assert V not in safe(text[::-1].replace(secret[::-1], secret), limit)


def test_safe_of_40_mb_looks_at_a_part_only() -> None:
    text = "password=hunter2x " * 2_300_000
    began = time.process_time()
    shown = safe(text, 4000)
    assert time.process_time() - began < 1
    assert len(shown) <= 4000
    assert "hunter2x" not in shown


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "password", "apiKey", "aws_secret_access_key", "Cookie", "pwd", "db-passwd"),
        *("AccountKey", "sig", "sas_token", "PGPASSWORD", "clientSecret", "Authorization", "token"),
        *("X-Api-Key", "authtoken", "AZURE_STORAGE_CONNECTION_STRING", "credentials", "signature"),
    ],
)
def test_looks_secret_of_a_name_of_a_secret_is_true(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("max_tokens", "exit_code", "author", "path", "passed", "text_key", "key", "eos_token"),
        *("tokenizer", "secretary", "auth", "password_file", "token_count", "NoCredentialsError"),
        *("compass", "keyboard", "design", "signal", ""),
    ],
)
def test_looks_secret_of_another_name_is_false(name: str) -> None:
    assert not looks_secret(name)


def test_looks_secret_where_wide_takes_any_key() -> None:
    for name in ("key", "OPENAI_KEY", "auth", "sas", "tokens", "client_auth"):
        assert looks_secret(name, wide=True), name
    for name in ("monkey", "author", "keyboard", "endpoint_url"):
        assert not looks_secret(name, wide=True), name


SOURCES: tuple[object, ...] = (
    "s3://me:hunter2%40x@bucket/path",
    {
        "HF_TOKEN": "plain-looking",
        "OPENAI_KEY": "abcd1234efgh",
        "SORT_KEY": "timestamp",
        "PATH": "/usr/bin:/bin",
        "GOOGLE_APPLICATION_CREDENTIALS": "/home/me/key.json",
        "DATABASE_URL": "postgres://u:dbpass@h/db",
        "DB_PASSWORD": "a b",
        "PASSWORD": "none",
        "PIN_PASSWORD": "12",
    },
    {"key": "AK1234567890", "client_kwargs": {"secret": ["opt5ecret"]}, "anon": False},
)


def test_known_secrets_are_taken_by_name_and_from_urls() -> None:
    assert known_secrets(*SOURCES) == (
        "hunter2%40x",
        "plain-looking",
        "abcd1234efgh",
        "dbpass",
        "a b",
        "none",
        "12",
        "AK1234567890",
        "opt5ecret",
    )


@pytest.mark.parametrize(
    "text",
    [
        "403 for hunter2@x",
        "at s3://bucket/hunter2%40x",
        "it says plain-looking here",
        "(dbpass)",
        "xopt5ecretx",
        "AK1234567890",
    ],
)
def test_redactor_hides_known_values_anywhere(text: str) -> None:
    hidden = Redactor.of(*SOURCES).redact(text)
    assert "***" in hidden
    for value in ("hunter2", "plain-looking", "dbpass", "opt5ecret", "AK123"):
        assert value not in hidden


def test_redactor_keeps_common_and_short_values_and_parts_of_words() -> None:
    redactor = Redactor.of(*SOURCES)
    for text in ("none of 12 are", "a b", "timestamp", "/home/me/key.json", "sandbpassage", "/bin"):
        assert redactor.redact(text) == text


def test_redactor_hides_each_line_of_a_known_text() -> None:
    redactor = Redactor(["first line of a key\nsecond line of a key\nend"])
    assert redactor.redact("a second line of a key, end") == "a ***, end"


def test_redactor_shows_no_value_in_its_repr() -> None:
    assert repr(Redactor(["hunter2x"])) == "<Redactor of 1 known values>"


def test_redactor_of_plain_data_hides_names_and_values() -> None:
    data = {"a": ["x hunter2x", 1, None], "password": "short", "token": None, "n": {"b": "ok"}}
    assert Redactor(["hunter2x"]).plain(data) == {
        "a": ["x ***", 1, None],
        "password": "***",
        "token": None,
        "n": {"b": "ok"},
    }
