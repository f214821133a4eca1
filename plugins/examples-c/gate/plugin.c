// Keeps out what is too long: answers an empty text by itself, rejects one of more bytes than the configuration's
// `text_bytes_max`, and serves the rest on the base, or under the adapter that `adapter` names.
#include "rules.h"
#include "tenon.h"

bool exports_tenon_plugin_hooks_route(tenon_request *request, tenon_decision *ret, tenon_string *err) {
  const char *said = tenon_config("text_bytes_max");
  size_t bytes_max = said == NULL ? TEXT_BYTES_MAX_DEFAULT : limit_of(said);
  if (bytes_max == 0) return tenon_fail(err, "the function's configuration `text_bytes_max` is not a number above 0");
  switch (gate(request->text.ptr, request->text.len, bytes_max)) {
  case GATE_EMPTY:
    return tenon_answer(ret, "Say something.");
  case GATE_TOO_LONG:
    tenon_log(TENON_PLUGIN_LOG_LEVEL_INFO, "too long");
    return tenon_reject(ret, "too_long", "the text is longer than this function takes");
  case GATE_OPEN:
    break;
  }
  return tenon_serve(ret);
}

bool exports_tenon_plugin_hooks_compose(tenon_request *request, tenon_plan *ret, tenon_string *err) {
  (void)err;
  *ret = tenon_plan_of(request);
  const char *adapter = tenon_config("adapter");
  if (adapter != NULL) tenon_adapter(ret, adapter, 1.0f);
  return true;
}

TENON_PASS_THROUGH
