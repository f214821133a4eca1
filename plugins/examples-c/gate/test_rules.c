// What the gate lets through, natively.
#include "rules.h"

#include <stdio.h>
#include <string.h>

static int failures = 0;

static void check(bool holds, const char *what) {
  if (!holds) {
    fprintf(stderr, "failed: %s\n", what);
    failures++;
  }
}

static gate_verdict of(const char *text, size_t bytes_max) { return gate((const uint8_t *)text, strlen(text), bytes_max); }

int main(void) {
  check(of("hello", 5) == GATE_OPEN, "as long as the limit");
  check(of("hello", 4) == GATE_TOO_LONG, "longer than the limit");
  check(of("", 5) == GATE_EMPTY && of(" \t\r\n", 2) == GATE_EMPTY, "spaces are nothing");
  check(limit_of("120") == 120, "digits");
  check(limit_of("") == 0 && limit_of("-1") == 0 && limit_of("1k") == 0, "not digits");
  check(limit_of("99999999999999999999999") == 0, "too large");
  return failures != 0;
}
