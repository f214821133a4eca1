// {{name}}: answers an empty text by itself; the rest is served on the base, or under the adapter that the configuration's
// `adapter` names.
#include "rules.h"
#include "tenon.h"

bool exports_tenon_plugin_hooks_route(tenon_request *request, tenon_decision *ret, tenon_string *err) {
  (void)err;
  return is_empty(request->text.ptr, request->text.len) ? tenon_answer(ret, "Say something.") : tenon_serve(ret);
}

bool exports_tenon_plugin_hooks_compose(tenon_request *request, tenon_plan *ret, tenon_string *err) {
  (void)err;
  *ret = tenon_plan_of(request);
  const char *adapter = tenon_config("adapter");
  if (adapter != NULL) tenon_adapter(ret, adapter, 1.0f);
  return true;
}

TENON_PASS_THROUGH
