#!/bin/sh
# What an image does at boot to find the provider of its model; prints it. The table is made from prefixes.tsv, and a test
# says when it is not what it would be made of now.
provider=${HERMES_INFERENCE_PROVIDER:-}
model=${HERMES_INFERENCE_MODEL:-${HERMES_DEFAULT_MODEL:-}}
if [ -z "$provider" ]; then
  case "$model" in
    ai-gateway/* | aigateway/*) provider=ai-gateway ;;
    alibaba/* | dashscope/* | qwen/*) provider=alibaba ;;
    alibaba-coding-plan/*) provider=alibaba-coding-plan ;;
    anthropic/*) provider=anthropic ;;
    arcee/* | arcee-ai/*) provider=arcee ;;
    aws/* | bedrock/*) provider=bedrock ;;
    copilot/*) provider=copilot ;;
    copilot-acp/*) provider=copilot-acp ;;
    custom/*) provider=custom ;;
    deepseek/*) provider=deepseek ;;
    gemini/*) provider=gemini ;;
    gmi/*) provider=gmi ;;
    google-gemini-cli/*) provider=google-gemini-cli ;;
    hf/* | huggingface/*) provider=huggingface ;;
    kilocode/*) provider=kilocode ;;
    kimi-coding/*) provider=kimi-coding ;;
    kimi-coding-cn/*) provider=kimi-coding-cn ;;
    lm-studio/* | lmstudio/*) provider=lmstudio ;;
    minimax/*) provider=minimax ;;
    minimax-cn/*) provider=minimax-cn ;;
    minimax-oauth/*) provider=minimax-oauth ;;
    nim/* | nvidia/*) provider=nvidia ;;
    ollama-cloud/*) provider=ollama-cloud ;;
    openai-codex/*) provider=openai-codex ;;
    opencode-go/*) provider=opencode-go ;;
    opencode-zen/*) provider=opencode-zen ;;
    openrouter/*) provider=openrouter ;;
    qwen-oauth/*) provider=qwen-oauth ;;
    tencent/* | tencent-tokenhub/*) provider=tencent-tokenhub ;;
    grok/* | xai/*) provider=xai ;;
    mimo/* | xiaomi/*) provider=xiaomi ;;
    zai/*) provider=zai ;;
    openai/*)
      if [ -n "${OPENAI_API_KEY:-}" ]; then provider=custom; else provider=openrouter; fi
      ;;
    nousresearch/*)
      if [ -n "${HERMES_API_KEY:-}${NOUS_API_KEY:-}" ]; then provider=nous; else provider=openrouter; fi
      ;;
    *) provider=auto ;;
  esac
fi
printf '%s\n' "$provider"
