// What programs for Node expect, and Deno's kernel lacks. Run in each of its contexts before any code.

globalThis.require = (await import("node:module")).createRequire(`${Deno.cwd()}/`);

// The kernel shows what `console` prints alone: these streams lead to nobody.
for (const [stream, isError] of [[process.stdout, false], [process.stderr, true]]) {
  const decoder = new TextDecoder();
  stream.write = (chunk, encoding, done) => {
    const text = typeof chunk === "string" ? chunk : decoder.decode(chunk, { stream: true });
    Deno[Deno.internal].core.print(text, isError);
    (typeof encoding === "function" ? encoding : done)?.();
    return true;
  };
}
