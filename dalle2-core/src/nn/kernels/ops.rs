//! The operations as a backend extension, and their implementation for the CPU backend `Flex`.

use burn::backend::flex::FlexTensor;
use burn::backend::{Backend, Flex, backend_extension, tensor::FloatTensor};
use burn::tensor::{Shape, TensorData};

use super::Elementwise;
use super::elementwise;
use super::norm::{self, Affine, GroupNormShape, Moments};

/// What a backend needs to run the hot operations itself.
#[backend_extension(Flex, Autodiff)]
pub trait NnOps: Backend {
    /// `function(x)` for every element.
    fn elementwise(x: FloatTensor<Self>, function: Elementwise) -> FloatTensor<Self>;

    /// Group norm of `[B, C, H, W]` with γ and β `[C]`, followed by SiLU if `shape` says so.
    fn group_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        shape: GroupNormShape,
    ) -> FloatTensor<Self>;

    /// Group norm with `· (1 + scale) + shift`, both `[B, C]`, before SiLU.
    fn group_norm_film(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        shift: FloatTensor<Self>,
        shape: GroupNormShape,
    ) -> FloatTensor<Self>;
}

impl NnOps for Flex {
    fn elementwise(x: FlexTensor, function: Elementwise) -> FlexTensor {
        let mut x = whole(x);
        if x.is_unique() {
            elementwise::apply_in_place(function, x.storage_mut());
            return x;
        }
        let mut y = vec![0.0; values(&x).len()];
        elementwise::apply(function, &mut y, values(&x));
        tensor(y, x.layout().shape().clone())
    }

    fn group_norm(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, shape: GroupNormShape) -> FlexTensor {
        normalize(x, &Parameters::new(gamma, beta, None), &shape).0
    }

    fn group_norm_film(
        x: FlexTensor,
        gamma: FlexTensor,
        beta: FlexTensor,
        scale: FlexTensor,
        shift: FlexTensor,
        shape: GroupNormShape,
    ) -> FlexTensor {
        normalize(x, &Parameters::new(gamma, beta, Some((scale, shift))), &shape).0
    }
}

/// The parameters of a group norm, each with its values in order.
#[derive(Debug, Clone)]
pub struct Parameters {
    gamma: FlexTensor,
    beta: FlexTensor,
    film: Option<(FlexTensor, FlexTensor)>,
}

impl Parameters {
    /// Takes the parameters in any layout.
    pub fn new(gamma: FlexTensor, beta: FlexTensor, film: Option<(FlexTensor, FlexTensor)>) -> Self {
        Self { gamma: whole(gamma), beta: whole(beta), film: film.map(|(scale, shift)| (whole(scale), whole(shift))) }
    }

    /// As slices.
    pub fn affine(&self) -> Affine<'_> {
        Affine {
            gamma: values(&self.gamma),
            beta: values(&self.beta),
            film: self.film.as_ref().map(|(scale, shift)| (values(scale), values(shift))),
        }
    }
}

/// Group norm, in place if nobody else holds `x`.
pub fn normalize(x: FlexTensor, parameters: &Parameters, shape: &GroupNormShape) -> (FlexTensor, Vec<Moments>) {
    let mut x = whole(x);
    let affine = parameters.affine();
    if x.is_unique() {
        let moments = norm::forward(shape, &affine, None, x.storage_mut());
        return (x, moments);
    }
    let mut y = vec![0.0; values(&x).len()];
    let moments = norm::forward(shape, &affine, Some(values(&x)), &mut y);
    (tensor(y, x.layout().shape().clone()), moments)
}

/// The tensor with its values in order from the first to the last of its storage.
pub fn whole(x: FlexTensor) -> FlexTensor {
    let layout = x.layout();
    if x.is_contiguous() && layout.start_offset() == 0 && values(&x).len() == layout.num_elements() {
        x
    } else {
        x.to_contiguous()
    }
}

/// The storage of a tensor, which for one from [`whole`] is its values in order.
pub fn values(x: &FlexTensor) -> &[f32] {
    x.storage()
}

/// A tensor of these values.
pub fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}
