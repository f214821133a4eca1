// What the gate lets through. Plain C without the contract, so that it is tested on any machine.
#ifndef RULES_H
#define RULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Bytes of text that are let through unless the configuration says otherwise.
#define TEXT_BYTES_MAX_DEFAULT 2000

typedef enum { GATE_OPEN, GATE_EMPTY, GATE_TOO_LONG } gate_verdict;

// A limit as digits; 0 if it is none, or too large.
static inline size_t limit_of(const char *digits) {
  size_t value = 0;
  if (*digits == 0) return 0;
  for (; *digits != 0; digits++) {
    if (*digits < '0' || *digits > '9' || value > 100000000) return 0;
    value = value * 10 + (size_t)(*digits - '0');
  }
  return value;
}

// Whether a text of this many bytes is let through.
static inline gate_verdict gate(const uint8_t *text, size_t bytes, size_t bytes_max) {
  size_t spaces = 0;
  while (spaces < bytes && (text[spaces] == ' ' || text[spaces] == '\t' || text[spaces] == '\n' || text[spaces] == '\r')) spaces++;
  if (spaces == bytes) return GATE_EMPTY;
  return bytes > bytes_max ? GATE_TOO_LONG : GATE_OPEN;
}

#endif
