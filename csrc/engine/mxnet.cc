// SPDX-License-Identifier: Apache-2.0
#include "mxnet.h"

namespace mxadamax::engine {
namespace {

Api bound;

// Calls visit(name, function pointer) for every function of the API.
template <class Visit>
void for_each_function(Api& a, Visit&& visit) {
  visit("MXGetLastError", a.MXGetLastError);
  visit("MXShallowCopyNDArray", a.MXShallowCopyNDArray);
  visit("MXNDArrayFree", a.MXNDArrayFree);
  visit("MXNDArrayGetShape64", a.MXNDArrayGetShape64);
  visit("MXNDArrayGetDType", a.MXNDArrayGetDType);
  visit("MXNDArrayGetContext", a.MXNDArrayGetContext);
  visit("MXNDArrayGetStorageType", a.MXNDArrayGetStorageType);
  visit("MXNDArrayGetAuxType", a.MXNDArrayGetAuxType);
  visit("MXNDArraySlice", a.MXNDArraySlice);
  visit("MXNDArrayGetData", a.MXNDArrayGetData);
  visit("MXNDArrayToDLPack", a.MXNDArrayToDLPack);
  visit("MXNDArrayCallDLPackDeleter", a.MXNDArrayCallDLPackDeleter);
  visit("MXAutogradSetIsRecording", a.MXAutogradSetIsRecording);
  visit("NNGetOpHandle", a.NNGetOpHandle);
  visit("MXImperativeInvoke", a.MXImperativeInvoke);
  visit("MXEngineSetBulkSize", a.MXEngineSetBulkSize);
  visit("MXEnginePushSyncND", a.MXEnginePushSyncND);
}

}  // namespace

const Api& api() { return bound; }

std::vector<std::string> api_names() {
  std::vector<std::string> names;
  Api unused;
  for_each_function(unused, [&](const char* name, auto&) { names.emplace_back(name); });
  return names;
}

void bind(const std::function<std::uintptr_t(const std::string&)>& address_of) {
  Api found;
  for_each_function(found, [&](const char* name, auto& function) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(address_of(name));
  });
  bound = found;
}

void check(int status) {
  if (status != 0) throw std::runtime_error(api().MXGetLastError());
}

}  // namespace mxadamax::engine
