"""Optimizer papers as composable optax gradient transformations, each proven equal to its authors' code."""

from optax_zoo import reexports as reexports
from optax_zoo._core.averages import eval_params as eval_params
from optax_zoo._core.closures import closures as closures
from optax_zoo._core.closures import only_extra_args as only_extra_args
from optax_zoo._core.closures import train_step as train_step
from optax_zoo._core.describe import describe as describe
from optax_zoo._core.matrix import orthogonalize as orthogonalize
from optax_zoo._core.paper import Paper as Paper
from optax_zoo._core.paper import cite as cite
from optax_zoo._core.paper import create as create
from optax_zoo._core.paper import find as find
from optax_zoo._core.paper import paper as paper
from optax_zoo._core.paper import papers as papers
from optax_zoo._core.quintics import polar_express_coeffs as polar_express_coeffs
from optax_zoo._core.views import MatrixView as MatrixView
from optax_zoo.adaptive.adabelief import adabelief as adabelief
from optax_zoo.adaptive.adabelief import scale_by_adabelief as scale_by_adabelief
from optax_zoo.adaptive.adabound import adabound as adabound
from optax_zoo.adaptive.adabound import amsbound as amsbound
from optax_zoo.adaptive.adabound import scale_by_adabound as scale_by_adabound
from optax_zoo.adaptive.ademamix import ademamix as ademamix
from optax_zoo.adaptive.ademamix import ademamix_alpha_schedule as ademamix_alpha_schedule
from optax_zoo.adaptive.ademamix import ademamix_b3_schedule as ademamix_b3_schedule
from optax_zoo.adaptive.ademamix import scale_by_ademamix as scale_by_ademamix
from optax_zoo.averaging.ema import inverse_power_ema_decay as inverse_power_ema_decay
from optax_zoo.averaging.ema import power_ema_decay as power_ema_decay
from optax_zoo.averaging.ema import power_ema_gamma as power_ema_gamma
from optax_zoo.averaging.ema import warmup_ema_decay as warmup_ema_decay
from optax_zoo.averaging.ema import with_ema as with_ema
from optax_zoo.averaging.polyak import with_polyak as with_polyak
from optax_zoo.averaging.schedule_free import schedule_free as schedule_free
from optax_zoo.averaging.schedule_free import schedule_free_adamw as schedule_free_adamw
from optax_zoo.averaging.schedule_free import schedule_free_radam as schedule_free_radam
from optax_zoo.averaging.schedule_free import schedule_free_sgd as schedule_free_sgd
from optax_zoo.averaging.swa import with_swa as with_swa
from optax_zoo.clipping.clip_by_coordinate import clip_by_coordinate as clip_by_coordinate
from optax_zoo.matrix._auxiliary import muon_mask_by_path as muon_mask_by_path
from optax_zoo.matrix.muon import muon as muon
from optax_zoo.matrix.muon import scale_by_muon as scale_by_muon
from optax_zoo.schedules.linear_to_zero import linear_to_zero as linear_to_zero
from optax_zoo.schedules.swa_rates import cyclic_lr as cyclic_lr
from optax_zoo.schedules.swa_rates import swa_lr_schedule as swa_lr_schedule
from optax_zoo.schedules.swa_rates import swalr as swalr
from optax_zoo.schedules.wsd import wsd as wsd

__version__ = "0.1.0"
