// SPDX-License-Identifier: Apache-2.0
#include "mxnet.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <numeric>
#include <string_view>

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
  visit("MXNDArrayGetGradState", a.MXNDArrayGetGradState);
  visit("MXNDArraySetGradState", a.MXNDArraySetGradState);
  visit("MXAutogradSetIsRecording", a.MXAutogradSetIsRecording);
  visit("NNGetOpHandle", a.NNGetOpHandle);
  visit("MXImperativeInvoke", a.MXImperativeInvoke);
  visit("MXEngineSetBulkSize", a.MXEngineSetBulkSize);
  visit("MXEnginePushSyncND", a.MXEnginePushSyncND);
}

// What MXNet's numbers of types stand for. Ours have the same names.
constexpr std::string_view dtype_names[] = {"float32", "float64", "float16", "uint8", "int32",
                                            "int8",    "int64",   "bool",    "int16", "uint16",
                                            "uint32",  "uint64",  "bfloat16"};

// MXNet's number of each DType.
constexpr auto dtype_numbers = [] {
  std::array<int, std::size(dtypes)> numbers{};
  for (const DType type : dtypes) {
    int number = 0;
    while (dtype_names[number] != dtype_name(type)) ++number;
    numbers[static_cast<std::size_t>(type)] = number;
  }
  return numbers;
}();

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

int dtype_of(Handle array) {
  int dtype = -1;
  check(api().MXNDArrayGetDType(array, &dtype));
  return dtype;
}

int dtype_number(DType type) { return dtype_numbers[static_cast<std::size_t>(type)]; }

std::string dtype_name(int number) {
  return number >= 0 && number < static_cast<int>(std::size(dtype_names))
             ? std::string(dtype_names[number])
             : "of number " + std::to_string(number);
}

std::optional<DType> dtype_numbered(int number) {
  for (const DType type : dtypes) {
    if (number == dtype_number(type)) return type;
  }
  return std::nullopt;
}

Context context_of(Handle array) {
  Context context{};
  check(api().MXNDArrayGetContext(array, &context.device_type, &context.device_id));
  if (is_gpu(context)) return context;
  return {cpu_device, context.device_type == cpu_device ? context.device_id : 0};
}

bool is_gpu(const Context& context) { return context.device_type == gpu_device; }

Shape::Shape(Handle array) {
  const std::int64_t* data = nullptr;
  check(api().MXNDArrayGetShape64(array, &ndim, &data));
  if (ndim < 0 || ndim > most_dims) throw std::runtime_error("an array of unknown shape");
  std::copy(data, data + ndim, dims);
}

Shape::Shape(std::int64_t rows, std::int64_t columns) : ndim(2), dims{rows, columns} {}

bool Shape::is_of(Handle array) const {
  int found = 0;
  const std::int64_t* data = nullptr;
  check(api().MXNDArrayGetShape64(array, &found, &data));
  return found == ndim && std::equal(dims, dims + ndim, data);
}

bool Shape::operator==(const Shape& other) const {
  return ndim == other.ndim && std::equal(dims, dims + ndim, other.dims);
}

std::int64_t Shape::size() const {
  return std::accumulate(dims, dims + ndim, std::int64_t{1}, std::multiplies<>());
}

std::string Shape::text() const {
  std::string list;
  for (int k = 0; k < ndim; ++k) list += (k == 0 ? "" : ", ") + std::to_string(dims[k]);
  return "(" + list + (ndim == 1 ? ",)" : ")");
}

}  // namespace mxadamax::engine
