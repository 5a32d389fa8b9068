//! Layers, one per file: formula, source and shapes first, then the forward and the backward pass.

pub mod attention;
pub mod dropout;
pub mod embedding;
pub mod gelu;
pub mod linear;
pub mod lora;
pub mod loss;
pub mod matvec;
pub mod norm;
pub mod rotary;
pub mod swiglu;
pub mod top_k;

#[cfg(test)]
mod tests {
    use crate::base::testing::rerun_on_other_paths;

    #[test]
    fn every_path_passes_the_tests_of_layers_with_vector_code() {
        rerun_on_other_paths(&["attention::", "norm::", "gelu::", "rotary::", "swiglu::", "loss::"]);
    }
}
