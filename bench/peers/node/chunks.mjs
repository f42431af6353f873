// `count` copies of a job in arrays of at most `size`.
export default function* chunks(count, size, job) {
  for (let left = count; left > 0; left -= size) {
    yield Array.from({ length: Math.min(left, size) }, () => job);
  }
}
