//! [`Arrays`]: what an update reads and writes.

/// Flat arrays of consecutive parameters, as long as each other.
pub struct Arrays<'a> {
    pub params: &'a mut [f32],
    pub grads: &'a mut [f32],
    pub exp_avg: &'a mut [f32],
    pub exp_avg_sq: &'a mut [f32],
}

impl<'a> Arrays<'a> {
    /// Splits each array after `n` elements.
    pub fn split_at(self, n: usize) -> (Self, Self) {
        let (params, more_params) = self.params.split_at_mut(n);
        let (grads, more_grads) = self.grads.split_at_mut(n);
        let (exp_avg, more_exp_avg) = self.exp_avg.split_at_mut(n);
        let (exp_avg_sq, more_exp_avg_sq) = self.exp_avg_sq.split_at_mut(n);
        let rest = Self { params: more_params, grads: more_grads, exp_avg: more_exp_avg, exp_avg_sq: more_exp_avg_sq };
        (Self { params, grads, exp_avg, exp_avg_sq }, rest)
    }
}
