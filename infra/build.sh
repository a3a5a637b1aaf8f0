#!/usr/bin/env bash
# infra/build.sh IMAGE [BUILD OPTIONS...]: builds the image with docker or podman and checks that it works.
# BASE=IMAGE@sha256:... repeats a build on the base image that an earlier one named.
set -euo pipefail
image=${1:?name the image, for example registry.acme.com/vlbatch:0.1.0}
shift
cd "$(dirname "$0")/.."
if command -v docker >/dev/null; then tool=docker; else tool=podman; fi
if [ -z "${BASE:-}" ]; then
  tag=$(sed -n 's/^ARG BASE=//p' infra/Dockerfile)
  "$tool" pull --platform linux/amd64 "$tag"
  BASE=$("$tool" image inspect --format '{{index .RepoDigests 0}}' "$tag")
fi
DOCKER_BUILDKIT=1 "$tool" build --platform linux/amd64 --file infra/Dockerfile --build-arg "BASE=$BASE" \
  --label "org.opencontainers.image.base.name=$BASE" --tag "$image" "$@" .
"$tool" run --rm "$image" python -m pipeline check --explain >/dev/null
"$tool" run --rm "$image" python -c "import decord, av, pillow_heif, torch, ray; print('torch', torch.__version__, 'cuda', torch.version.cuda, 'ray', ray.__version__)"
"$tool" run --rm "$image" bash -lc 'ray --version && test -x jobs/caption.yaml'
echo "built $image on $BASE; push it with: $tool push $image"
