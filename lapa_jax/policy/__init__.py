"""The vision-language-action model: rows of tokens, front-ends, heads, decoding."""
