//! Slices of tensors that live in main memory, for arithmetic that Burn would spread over many passes.
//!
//! An optimizer step is bound by memory, and tensor operations read and write is_contiguous tensors once per operation. On the
//! CPU backend these views make one pass of it, in place and on all cores; every other backend keeps to tensor operations.

/// Elements that one thread works on at a time: small enough to stay in the second-level cache.
pub(super) const CHUNK: usize = 16 * 1024;

#[cfg(feature = "flex")]
mod cpu {
    use burn::backend::Flex;
    use burn::prelude::*;
    use burn::tensor::DType;

    type Primitive = <Flex as burn::backend::BackendTypes>::FloatTensorPrimitive;

    /// A contiguous f32 tensor of the CPU backend.
    pub(crate) struct HostTensor(Primitive);

    impl HostTensor {
        /// Whether [`HostTensor::new`] takes this tensor: f32 on the CPU backend, without autodiff.
        pub(crate) fn fits<const D: usize>(tensor: &Tensor<D>) -> bool {
            let device = tensor.device();
            device == Device::flex() && !device.is_autodiff() && tensor.dtype() == DType::F32
        }

        /// The tensor's memory, copied only when it is a view.
        ///
        /// # Panics
        /// When the tensor does not [fit](HostTensor::fits).
        pub(crate) fn new<const D: usize>(tensor: Tensor<D>) -> Self {
            let bytes = tensor.shape().num_elements() * size_of::<f32>();
            let Ok(primitive) = tensor.try_into_primitive::<Flex>() else {
                unreachable!("the caller checks that the tensor is on the CPU backend")
            };
            let is_contiguous = primitive.is_contiguous() && primitive.bytes().len() == bytes;
            Self(if is_contiguous { primitive } else { primitive.to_contiguous() })
        }

        pub(crate) fn slice(&self) -> &[f32] {
            self.0.storage::<f32>()
        }

        /// Copies first if another tensor shares the memory.
        pub(crate) fn slice_mut(&mut self) -> &mut [f32] {
            self.0.storage_mut::<f32>()
        }

        pub(crate) fn into_tensor<const D: usize>(self) -> Tensor<D> {
            Tensor::from_primitive::<Flex>(self.0)
        }
    }
}

#[cfg(not(feature = "flex"))]
mod cpu {
    use burn::prelude::*;

    /// Without the CPU backend no tensor lives in main memory.
    pub enum HostTensor {}

    impl HostTensor {
        pub fn fits<const D: usize>(_: &Tensor<D>) -> bool {
            false
        }

        pub fn new<const D: usize>(_: Tensor<D>) -> Self {
            unreachable!("no tensor fits")
        }

        pub fn slice(&self) -> &[f32] {
            match *self {}
        }

        pub fn slice_mut(&mut self) -> &mut [f32] {
            match *self {}
        }

        pub fn into_tensor<const D: usize>(self) -> Tensor<D> {
            match self {}
        }
    }
}

pub(super) use cpu::HostTensor;

/// A plain loop over slices.
pub(super) trait Sweep {
    type Output;

    /// To be marked `#[inline(always)]`, and without closures: what is not inlined is compiled for the oldest processor.
    fn run(self) -> Self::Output;
}

/// Runs a loop, compiled for the widest vectors of this machine.
#[cfg(feature = "kernels")]
pub(super) fn vectorized<L: Sweep>(sweep: L) -> L::Output {
    struct Vectorized<L>(L);

    impl<L: Sweep> macerator::WithSimd for Vectorized<L> {
        type Output = L::Output;

        #[inline(always)]
        fn with_simd<S: macerator::Simd>(self) -> L::Output {
            self.0.run()
        }
    }

    macerator::AutoArch::new().dispatch(Vectorized(sweep))
}

/// Runs a loop.
#[cfg(not(feature = "kernels"))]
pub(super) fn vectorized<L: Sweep>(sweep: L) -> L::Output {
    sweep.run()
}
