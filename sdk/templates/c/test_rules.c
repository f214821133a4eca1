// What {{name}} decides, natively: ends with 0 if all holds.
#include "rules.h"

#include <string.h>

static bool empty(const char *text) { return is_empty((const uint8_t *)text, strlen(text)); }

int main(void) { return empty("") && empty(" \t\r\n") && !empty(" hello ") ? 0 : 1; }
