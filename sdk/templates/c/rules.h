// What {{name}} decides, in plain C without the contract, so that it is tested on any machine.
#ifndef RULES_H
#define RULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Whether a text has nothing but spaces.
static inline bool is_empty(const uint8_t *text, size_t bytes) {
  for (size_t at = 0; at < bytes; at++) {
    if (text[at] != ' ' && text[at] != '\t' && text[at] != '\n' && text[at] != '\r') return false;
  }
  return true;
}

#endif
