//! [`FaultyTeacher`], and faults in what a student learns from it.

use std::any::Any;

use ngen3_engine::{
    Backward, Batch, DistillConfig, DistillLoss, Distiller, Divergence, Error, Teacher, TeacherSource, TopK,
};

use super::Fault;
use super::trainer::FaultyTrainer;

/// A teacher of the reference device, with a fault.
pub struct FaultyTeacher {
    pub fault: Fault,
    pub inner: Box<dyn Teacher>,
}

impl Teacher for FaultyTeacher {
    fn top_k(&mut self, batch: &Batch, k: usize, temperature: f32) -> Result<TopK, Error> {
        let temperature = if self.fault == Fault::TopKTemperature { 1.0 } else { temperature };
        let mut top_k = self.inner.top_k(batch, k, temperature)?;
        if self.fault == Fault::TopKIds {
            top_k.ids.chunks_exact_mut(k).for_each(|ids| ids.rotate_left(1));
        }
        Ok(top_k)
    }
}

/// The same tokens with probabilities that add up to 1.
fn normalized(top_k: &TopK) -> TopK {
    let mut top_k = top_k.clone();
    for log_probs in top_k.log_probs.chunks_exact_mut(top_k.k) {
        let ln_total = log_probs.iter().map(|p| p.exp()).sum::<f32>().ln();
        log_probs.iter_mut().for_each(|p| *p -= ln_total);
    }
    top_k
}

impl FaultyTrainer {
    /// Distills in the student within, from the teacher within.
    fn distill_within(
        &mut self,
        batch: &Batch,
        teacher: &mut TeacherSource<'_>,
        distill: &DistillConfig,
        backward: Option<Backward>,
    ) -> Result<DistillLoss, Error> {
        let without_rest;
        let teacher = match teacher {
            TeacherSource::Teacher(teacher) => {
                let teacher: &mut dyn Any = &mut **teacher;
                let Some(teacher) = teacher.downcast_mut::<FaultyTeacher>() else {
                    return Err(Error::Input("the teacher is on another device".into()));
                };
                TeacherSource::Teacher(&mut *teacher.inner)
            }
            TeacherSource::TopK(top_k) if self.fault == Fault::TopKWithoutRest => {
                without_rest = normalized(top_k);
                TeacherSource::TopK(&without_rest)
            }
            TeacherSource::TopK(top_k) => TeacherSource::TopK(top_k),
        };
        self.inner.distiller()?.distill(batch, teacher, distill, backward)
    }
}

impl Distiller for FaultyTrainer {
    fn distill(
        &mut self,
        batch: &Batch,
        mut teacher: TeacherSource<'_>,
        distill: &DistillConfig,
        backward: Option<Backward>,
    ) -> Result<DistillLoss, Error> {
        // Adds no gradient, and drops the same activations.
        let silent = backward.map(|backward| Backward { weight: 0.0, ..backward });
        let of_gradient = match self.fault {
            Fault::DivergenceWeight => DistillConfig { alpha: 0.999 * distill.alpha, ..*distill },
            Fault::DivergenceGradient if distill.divergence == Divergence::JensenShannon => {
                DistillConfig { divergence: Divergence::ReverseKl, ..*distill }
            }
            _ => *distill,
        };
        let mut loss = self.distill_within(batch, &mut teacher, distill, silent)?;
        if let Some(mut backward) = backward {
            match self.fault {
                Fault::DistillWeight => backward.weight = 1.0,
                Fault::DistillOverwrites => self.clear_gradients()?,
                Fault::DistillTrainingLoss => loss.cross_entropy *= 1.0001,
                _ => {}
            }
            self.distill_within(batch, &mut teacher, &of_gradient, Some(backward))?;
        }
        match self.fault {
            Fault::DivergenceLoss => loss.divergence /= distill.temperature.powi(2),
            Fault::DistillCrossEntropy => loss.cross_entropy *= 1.0001,
            _ => {}
        }
        Ok(loss)
    }
}
