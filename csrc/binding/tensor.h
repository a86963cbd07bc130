// PyTorch tensors as arguments and results: what a tensor is, whether it fits, and where its memory is.
//
// PyTorch describes a tensor through the C functions of DLPack, which it has had since 2.10. A decode step makes hundreds
// of calls with some ten tensors each, and `nb::ndarray`, which calls the Python method `__dlpack__` for each tensor,
// takes some twenty times as long.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <array>
#include <initializer_list>
#include <string>

#include "tasks/common.h"

namespace nb = nanobind;

namespace scout {

using Sizes = std::initializer_list<int64_t>;

// A tensor that the caller of a bound function keeps alive. Shape and strides are PyTorch's own memory.
struct Tensor {
    nb::handle object;
    nb::dlpack::dltensor memory;

    int64_t size(int axis) const { return memory.shape[axis]; }
    int64_t stride(int axis) const { return memory.strides[axis]; }
    nb::object owner() const { return nb::borrow(object); }
};

// Finds PyTorch; throws std::logic_error where it is too old. To be called before the first `view`.
void find_torch();
// Describes a tensor; false where `object` is not one. `memory.ndim` is -1 where DLPack does not know its device.
bool view(nb::handle object, Tensor& tensor) noexcept;

// What elements of a C++ type are called; booleans are stored as bytes.
struct Element {
    const char* name;
    nb::dlpack::dtype dtype;
};
template <class T>
constexpr Element kElement{};
template <>
inline constexpr Element kElement<float>{"torch.float32", {2, 32, 1}};
template <>
inline constexpr Element kElement<uint16_t>{"torch.float16", {2, 16, 1}};
template <>
inline constexpr Element kElement<int32_t>{"torch.int32", {0, 32, 1}};
template <>
inline constexpr Element kElement<int64_t>{"torch.int64", {0, 64, 1}};
template <>
inline constexpr Element kElement<uint8_t>{"torch.uint8", {1, 8, 1}};
template <>
inline constexpr Element kElement<bool>{"torch.bool", {6, 8, 1}};
inline constexpr Element kBFloat16Element{"torch.bfloat16", {4, 16, 1}};

template <class T>
struct StoredAs {
    using type = T;
};
template <>
struct StoredAs<bool> {
    using type = uint8_t;
};

bool is_on_cpu(const Tensor& tensor);
bool has(const Tensor& tensor, const Element& element);
// Whether axes `first` and later are contiguous.
bool is_contiguous(const Tensor& tensor, int first);

// An attribute of a tensor as Python prints it, for messages; a shape as a list.
std::string text(const Tensor& tensor, const char* attribute);
std::string text(Sizes sizes);

// All below throw std::invalid_argument with a sentence that names the tensor.
void check_on_cpu(const char* name, const Tensor& tensor);
// `axes`: the shape in words.
void check_dims(const char* name, const Tensor& tensor, int dims, const char* axes);
void check_exact(const char* name, const Tensor& tensor, const Element& element, Sizes shape);
void check_pages(const char* name, const Tensor& tensor, const Element& element, Sizes shape, int apart);
void check_table(const char* name, const Tensor& tensor, Sizes begins, const char* axes);

// The sizes of a tensor with N axes on the CPU.
template <int N>
std::array<int64_t, N> shape(const char* name, const Tensor& tensor, const char* axes) {
    check_dims(name, tensor, N, axes);
    std::array<int64_t, N> sizes;
    std::copy_n(tensor.memory.shape, N, sizes.begin());
    return sizes;
}

template <class T>
T* address(const Tensor& tensor) {
    char* begin = static_cast<char*>(tensor.memory.data) + tensor.memory.byte_offset;
    check_aligned(reinterpret_cast<uintptr_t>(begin), alignof(T));
    return reinterpret_cast<T*>(begin);
}

// The memory of a contiguous tensor of this dtype and shape.
template <class T>
typename StoredAs<T>::type* exact(const char* name, const Tensor& tensor, Sizes sizes) {
    check_exact(name, tensor, kElement<T>, sizes);
    return address<typename StoredAs<T>::type>(tensor);
}

// The memory of a tensor [S, *sizes] that is contiguous but for the first `apart` axes.
template <class T>
T* pages(const char* name, const Tensor& tensor, Sizes sizes, int apart = 2) {
    check_pages(name, tensor, kElement<T>, sizes, apart);
    return address<T>(tensor);
}

// An int32 table whose shape begins with `begins` and has one more axis, contiguous along that one.
Table table(const char* name, const Tensor& tensor, Sizes begins, const char* axes);

// A new contiguous tensor that a bound function returns.
template <class T>
struct Result {
    nb::object tensor;
    typename StoredAs<T>::type* data;
};

nb::object new_empty(const Tensor& like, const int64_t* sizes, size_t dims);

// An uninitialised tensor of the dtype of `like`, which has been checked to be T.
template <class T>
Result<T> new_like(const Tensor& like, Sizes sizes) {
    nb::object tensor = new_empty(like, sizes.begin(), sizes.size());
    Tensor memory;
    view(tensor, memory);
    return {std::move(tensor), address<typename StoredAs<T>::type>(memory)};
}

}  // namespace scout

namespace nanobind::detail {

template <>
struct type_caster<scout::Tensor> {
    NB_TYPE_CASTER(scout::Tensor, const_name("torch.Tensor"))
    bool from_python(handle object, uint8_t, cleanup_list*) noexcept { return scout::view(object, value); }
};

}  // namespace nanobind::detail
