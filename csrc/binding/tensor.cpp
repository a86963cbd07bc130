#include "binding/tensor.h"

namespace scout {
namespace {

// The beginning of DLPack's DLPackExchangeAPI, version 1.
struct ExchangeFunctions {
    uint32_t major, minor;
    const void* older_version;
    void *allocate, *from_object, *to_object;
    int (*view)(void* object, nb::dlpack::dltensor* out);
};

// Held for as long as the process lives.
PyTypeObject* tensor_type = nullptr;
const ExchangeFunctions* functions = nullptr;
PyObject* new_empty_name = nullptr;

std::string describe(const Tensor& tensor) {
    return text(tensor, "dtype") + " " + text(tensor, "shape") + " with strides " + text(tensor, "stride") + " on " +
           text(tensor, "device");
}

[[noreturn]] void refuse(const char* name, const std::string& what) {
    throw std::invalid_argument(std::string(name) + " " + what);
}

void check_element(const char* name, const Tensor& tensor, const Element& element) {
    if (!is_on_cpu(tensor) || !has(tensor, element))
        refuse(name, "is " + text(tensor, "dtype") + " on " + text(tensor, "device") + ": it must be " + element.name +
                         " on the CPU");
}

bool begins_with(const Tensor& tensor, int first, Sizes sizes) {
    return std::equal(sizes.begin(), sizes.end(), tensor.memory.shape + first);
}

}  // namespace

void find_torch() {
    if (functions) return;
    const nb::object torch = nb::module_::import_("torch"), type = torch.attr("Tensor");
    const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
    const void* found = capsule.is_none() ? nullptr : PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
    const auto* table = static_cast<const ExchangeFunctions*>(found);
    if (!table || table->major != 1 || !table->view) {
        PyErr_Clear();
        throw std::logic_error(std::string("PyTorch ") + nb::str(torch.attr("__version__")).c_str() +
                               " has no DLPack exchange functions of version 1: install PyTorch 2.10 or newer");
    }
    tensor_type = reinterpret_cast<PyTypeObject*>(nb::object(type).release().ptr());
    new_empty_name = PyUnicode_InternFromString("new_empty");
    functions = table;
}

bool view(nb::handle object, Tensor& tensor) noexcept {
    if (!PyType_IsSubtype(Py_TYPE(object.ptr()), tensor_type)) return false;
    tensor.object = object;
    if (functions->view(object.ptr(), &tensor.memory) != 0) {
        PyErr_Clear();
        tensor.memory = {};
        tensor.memory.ndim = -1;
    }
    return true;
}

bool is_on_cpu(const Tensor& tensor) {
    return tensor.memory.ndim >= 0 && tensor.memory.device.device_type == nb::device::cpu::value;
}

bool has(const Tensor& tensor, const Element& element) { return tensor.memory.dtype == element.dtype; }

bool is_contiguous(const Tensor& tensor, int first) {
    int64_t stride = 1;
    for (int axis = 0; axis < tensor.memory.ndim; ++axis)
        if (tensor.size(axis) == 0) return true;
    for (int axis = tensor.memory.ndim - 1; axis >= first; --axis) {
        if (tensor.size(axis) != 1 && tensor.stride(axis) != stride) return false;
        stride *= tensor.size(axis);
    }
    return true;
}

std::string text(const Tensor& tensor, const char* attribute) {
    nb::object value = tensor.object.attr(attribute);
    if (PyCallable_Check(value.ptr())) value = value();
    if (std::string(attribute) == "shape") value = nb::list(value);
    return nb::str(value).c_str();
}

std::string text(Sizes sizes) {
    std::string joined;
    for (const int64_t size : sizes) joined += (joined.empty() ? "" : ", ") + std::to_string(size);
    return "[" + joined + "]";
}

void check_on_cpu(const char* name, const Tensor& tensor) {
    if (!is_on_cpu(tensor))
        refuse(name, "of shape " + text(tensor, "shape") + " is on " + text(tensor, "device") +
                         ": it must be on the CPU");
}

void check_dims(const char* name, const Tensor& tensor, int dims, const char* axes) {
    check_on_cpu(name, tensor);
    if (tensor.memory.ndim != dims) refuse(name, "is " + text(tensor, "shape") + ": it must be " + axes);
}

void check_exact(const char* name, const Tensor& tensor, const Element& element, Sizes shape) {
    if (is_on_cpu(tensor) && has(tensor, element) && tensor.memory.ndim == int32_t(shape.size()) &&
        begins_with(tensor, 0, shape) && is_contiguous(tensor, 0))
        return;
    refuse(name, "is " + describe(tensor) + ": it must be " + element.name + " " + text(shape) +
                     ", contiguous, on the CPU");
}

void check_pages(const char* name, const Tensor& tensor, const Element& element, Sizes shape, int apart) {
    check_element(name, tensor, element);
    if (tensor.memory.ndim != int32_t(shape.size()) + 1 || !begins_with(tensor, 1, shape))
        refuse(name, "is " + text(tensor, "shape") + ": it must be [S, " + text(shape).substr(1));
    if (!is_contiguous(tensor, apart))
        refuse(name, "has strides " + text(tensor, "stride") + ": all but the first " + std::to_string(apart) +
                         " axes must be contiguous");
}

void check_table(const char* name, const Tensor& tensor, Sizes begins, const char* axes) {
    check_element(name, tensor, kElement<int32_t>);
    const int last = int(begins.size());
    if (tensor.memory.ndim != last + 1 || !begins_with(tensor, 0, begins))
        refuse(name, "is " + text(tensor, "shape") + ": it must be " + axes + ", beginning with " + text(begins));
    if (tensor.size(last) > 1 && tensor.stride(last) != 1)
        refuse(name, "has strides " + text(tensor, "stride") + ": the last must be 1");
}

Table table(const char* name, const Tensor& tensor, Sizes begins, const char* axes) {
    check_table(name, tensor, begins, axes);
    return {address<int32_t>(tensor), tensor.stride(0), begins.size() > 1 ? tensor.stride(1) : 0};
}

nb::object new_empty(const Tensor& like, const int64_t* sizes, size_t dims) {
    nb::object shape = nb::steal(PyTuple_New(Py_ssize_t(dims)));
    for (size_t i = 0; i < dims; ++i) PyTuple_SET_ITEM(shape.ptr(), Py_ssize_t(i), PyLong_FromLongLong(sizes[i]));
    PyObject* made = PyObject_CallMethodOneArg(like.object.ptr(), new_empty_name, shape.ptr());
    if (!made) throw nb::python_error();
    return nb::steal(made);
}

}  // namespace scout
