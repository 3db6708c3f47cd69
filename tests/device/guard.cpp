// A device guard that does nothing, so that a torch built without CUDA can index tensors that say they lie on it.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
struct NoOpCuda final : public c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
const NoOpCuda guard;
}  // namespace

extern "C" void install_guard() {
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)].store(&guard);
}
