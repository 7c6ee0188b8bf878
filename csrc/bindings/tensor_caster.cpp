// SPDX-License-Identifier: Apache-2.0
#include "bindings/tensor_caster.h"

#include <string>
#include <unordered_map>

#include "bindings/dlpack.h"

namespace py = pybind11;

namespace va {
namespace {

DType dtype_from(dlpack::DataType t) {
  using namespace dlpack;
  if (t.lanes == 1) {
    if (t.code == kFloat && t.bits == 32) return DType::f32;
    if (t.code == kFloat && t.bits == 64) return DType::f64;
    if (t.code == kFloat && t.bits == 16) return DType::f16;
    if (t.code == kBfloat && t.bits == 16) return DType::bf16;
    if (t.code == kUInt && t.bits == 8) return DType::u8;
    if (t.code == kInt && t.bits == 32) return DType::i32;
    if (t.code == kInt && t.bits == 64) return DType::i64;
    if (t.code == kBool && t.bits == 8) return DType::boolean;
  }
  throw TypeError("a tensor of DLPack type (code " + std::to_string(t.code) + ", " + std::to_string(t.bits) +
                  " bits) is not supported");
}

DType dtype_from_format(const char* format, int64_t itemsize) {
  const std::string f = format ? format : "B";
  const char c = f.back();
  if (f.size() == 1 || (f.size() == 2 && (f[0] == '@' || f[0] == '=' || f[0] == '<'))) {
    switch (c) {
      case 'f':
        return DType::f32;
      case 'd':
        return DType::f64;
      case 'e':
        return DType::f16;
      case 'B':
        return DType::u8;
      case '?':
        return DType::boolean;
      case 'i':
        return DType::i32;
      case 'l':
      case 'q':
        return itemsize == 8 ? DType::i64 : DType::i32;
    }
  }
  throw TypeError("an array of format '" + f + "' is not supported");
}

void check_dims(int ndim) {
  if (ndim > TensorView::kMaxDims) {
    throw Error("a tensor may have at most " + std::to_string(TensorView::kMaxDims) + " dimensions, got " +
                std::to_string(ndim));
  }
}

void fill(TensorView& v, const dlpack::Tensor& t) {
  check_dims(t.ndim);
  switch (t.device.type) {
    case dlpack::kCpu:
    case dlpack::kCudaHost:
      v.device = {DeviceType::cpu, 0};
      break;
    case dlpack::kCuda:
    case dlpack::kCudaManaged:
      v.device = {DeviceType::cuda, t.device.id};
      break;
    default:
      throw Error("tensors on DLPack device type " + std::to_string(t.device.type) + " are not supported");
  }
  v.data = t.data ? static_cast<char*>(t.data) + t.byte_offset : nullptr;
  v.dtype = dtype_from(t.dtype);
  v.ndim = t.ndim;
  int64_t contiguous = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    v.sizes[i] = t.shape[i];
    v.strides[i] = t.strides ? t.strides[i] : contiguous;
    contiguous *= t.shape[i];
  }
  if (!v.data && v.numel() > 0)
    throw TypeError("a tensor without memory (fake or a wrapper) cannot be used here");
}

// The Python error that is set, in one line (torch appends a C++ backtrace), as a TypeError.
[[noreturn]] void throw_unreadable(py::handle source, const py::error_already_set& e) {
  if (!e.matches(PyExc_Exception)) throw e;  // KeyboardInterrupt and the like
  const std::string message = e.what();
  throw TypeError(std::string("cannot read this ") + Py_TYPE(source.ptr())->tp_name + ": " +
                  message.substr(0, message.find('\n')));
}

// The exchange table of a Python type, or null; looked up once per type.
const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
  static std::unordered_map<PyTypeObject*, const dlpack::ExchangeApi*> cache;  // guarded by the GIL
  if (const auto it = cache.find(type); it != cache.end()) return it->second;
  const dlpack::ExchangeApi* api = nullptr;
  if (PyObject* capsule =
          PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__")) {
    api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);
    if (api && (api->header.version.major != 1 || !api->tensor_from_py_object_no_sync)) api = nullptr;
  }
  PyErr_Clear();
  Py_INCREF(type);  // the key must not be reused by another type
  cache.emplace(type, api);
  return api;
}

}  // namespace

BorrowedTensor::BorrowedTensor(py::handle source) {
  if (source.is_none()) return;
  try {
    read(source);
  } catch (const py::error_already_set& e) {
    throw_unreadable(source, e);
  }
}

void BorrowedTensor::read(py::handle source) {
  PyTypeObject* const type = Py_TYPE(source.ptr());
  if (const auto* api = exchange_api(type)) {
    dlpack::Tensor t{};
    if (api->tensor_from_py_object_no_sync(source.ptr(), &t) != 0) throw py::error_already_set();
    fill(view, t);
    return;
  }
  if (PyObject_CheckBuffer(source.ptr())) {
    keep_ = py::reinterpret_steal<py::object>(PyMemoryView_FromObject(source.ptr()));
    if (!keep_) throw py::error_already_set();
    const Py_buffer* b = PyMemoryView_GET_BUFFER(keep_.ptr());
    check_dims(b->ndim);
    view.data = b->buf;
    view.dtype = dtype_from_format(b->format, b->itemsize);
    view.ndim = b->ndim;
    int64_t contiguous = b->itemsize;
    for (int i = b->ndim - 1; i >= 0; --i) {
      view.sizes[i] = b->shape[i];
      const int64_t bytes = b->strides ? b->strides[i] : contiguous;
      if (bytes % b->itemsize != 0) throw Error("array strides must be whole elements");
      view.strides[i] = bytes / b->itemsize;
      contiguous *= b->shape[i];
    }
    return;
  }
  if (py::hasattr(source, "__dlpack__")) {
    keep_ = source.attr("__dlpack__")();
    auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(keep_.ptr(), "dltensor"));
    if (!managed) throw py::error_already_set();
    fill(view, managed->tensor);  // the capsule keeps its own deleter
    return;
  }
  throw TypeError(std::string("expected a tensor or an array, got ") + type->tp_name);
}

void register_errors() {
  py::register_local_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const TypeError& e) {
      PyErr_SetString(PyExc_TypeError, e.what());
    } catch (const Error& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    }
  });
}

}  // namespace va
