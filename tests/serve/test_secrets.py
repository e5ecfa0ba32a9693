"""What a server writes down: never a key, nor anything that its clients say."""

import base64

import serving
from serving import NAME

KEY = "hw-planted-0-3f9c"


def test_nothing_that_clients_say_is_written_down(folder, tmp_path):
    planted = [f"planted-{n}-{n * 7919:x}" for n in range(1, 20)]
    with serving.running(folder, tmp_path / "log", "--api-key-env", "HW_KEY", HW_KEY=KEY) as server, server.client() as client:
        right, said = {"authorization": f"Bearer {KEY}"}, []

        def ask(method, path, headers=right, **more):
            reply = client.request(method, path, headers=headers, **more)
            said.append(reply.text)
            return reply.status_code

        for n, secret in enumerate(planted):
            texts = {"model": NAME, "input": [secret, f"fail {secret}"], "user": secret}
            picture = {"model": NAME, "input": [{"image": base64.b64encode(secret.encode()).decode()}]}
            kinds = (
                lambda s: ask("GET", "/v1/models", {"authorization": f"Bearer {s}"}),
                lambda s: ask("GET", "/v1/models", {"authorization": f"Basic {base64.b64encode(s.encode()).decode()}"}),
                lambda s: ask("GET", f"/v1/models?api_key={s}", right | {"cookie": f"hardwon_page={s}", "x-api-key": s}),
                lambda s: ask("GET", f"/{s}"),
                lambda s: ask("POST", "/v1/embeddings", json={"model": NAME, "input": s}),
                lambda s, t=texts: ask("POST", "/v1/embeddings", json=t),  # an error that nobody expects, with its traceback
                lambda s: ask("POST", "/v1/search", json={"text": s, "instruction": s}),
                lambda s: ask("POST", "/v1/rerank", json={"query": s, "documents": [s]}),
                lambda s: ask("POST", "/v1/embeddings", right | {"content-type": "application/json"}, content=s.encode()),
                lambda s, p=picture: ask("POST", "/v1/embeddings", json=p),
            )
            assert kinds[n % len(kinds)](secret) in (200, 400, 401, 404, 500)
        numbers = client.get("/metrics", headers=right).text
        assert "hardwon_requests" in numbers
    log = server.log.read_text()
    assert "as asked" in log  # the traceback is there
    for secret in (KEY, *planted):
        assert secret not in log and secret not in numbers, secret
    assert not any(KEY in text for text in said)
