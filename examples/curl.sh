#!/usr/bin/env bash
# The same service through curl: examples/curl.sh scene.jpg
set -euo pipefail

image="${1:?usage: curl.sh IMAGE}"
case "$image" in
    *.png) kind=png ;;
    *.webp) kind=webp ;;
    *) kind=jpeg ;;
esac

printf '{"messages": [{"role": "user", "content": [
  {"type": "image_url", "image_url": {"url": "data:image/%s;base64,%s"}},
  {"type": "text", "text": "Describe the image."}]}]}' "$kind" "$(base64 <"$image" | tr -d '\n')" |
    curl --silent --show-error --fail-with-body "${DISP_BASE_URL:-http://127.0.0.1:8000}/v1/chat/completions" \
        --header "Authorization: Bearer ${DISP_API_KEY:?}" \
        --header "Content-Type: application/json" --data @-
