"""Linear head fitted from streamed moments: memory does not grow with the number of frames.

The head of ``linear.py``, from sums instead of all tokens at once. With x' = x - c_p, where c_p is near the
mean at position p (that of the first batch: sums of squares then lose no digits):

    sum x'x'ᵀ,  sum x'yᵀ,  sum y²;      at each position  n_p,  sum x',  sum y

give the centred moments of any fold, those of two folds the error of every ridge strength on the one held
back, and their sum the head of all frames. Everything is float64. Of a token whose depth is known in part
only the mean depth of its known cells is used: W is fitted on tokens whose whole patch has depth, as in
``linear.py``, and the offset of a cell is the mean depth where it is known less x̄_p W, with x̄_p over the
tokens of which anything is known. Where all is known this is the closed form of ``linear.py``.

Memory of one head, in numbers of 8 bytes: 2 folds of C² + C K + 1 + P (C + K + 1), and P (2 C + 2 K + 1).

Shapes: F frames, P positions (views x rows x columns), C channels, K values that are read at a position, R
ridge strengths.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from spatial_forcing.probe.depth import FAR, ProbeError
from spatial_forcing.probe.linear import RIDGES, DepthProbe, Head, per_token


@dataclass
class Moments:
    """Moments of a fold: sums over its fully known tokens; x' is x less a constant of its position."""

    xx_CC: Tensor
    xy_CK: Tensor
    yy: Tensor
    n_P: Tensor
    x_PC: Tensor
    y_PK: Tensor

    @classmethod
    def zeros(cls, P: int, C: int, K: int, device: torch.device) -> "Moments":
        sizes = ((C, C), (C, K), (), (P,), (P, C), (P, K))
        return cls(*(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes))

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(*(mine + vars(other)[name] for name, mine in vars(self).items()))

    def add(self, x_FPC: Tensor, y_FPK: Tensor, whole_FP: Tensor) -> None:
        """Adds tokens to the sums; float64."""
        x, y = x_FPC[whole_FP], y_FPK[whole_FP]
        self.xx_CC += x.T @ x
        self.xy_CK += x.T @ y
        self.yy += y.square().sum()
        self.n_P += whole_FP.sum(0)
        self.x_PC += torch.where(whole_FP[..., None], x_FPC, 0.0).sum(0)
        self.y_PK += torch.where(whole_FP[..., None], y_FPK, 0.0).sum(0)

    def solved(self, square_C: Tensor, ridges: Iterable[float]) -> Tensor:
        """Solves for W (R, C, K), one for each ridge strength, on raw channels; ``square_C`` is the scale of
        what counts as no variance."""
        n_P1, n = self.n_P.clamp(min=1)[:, None], self.n_P.sum()
        xx_CC = self.xx_CC - (self.x_PC / n_P1).T @ self.x_PC
        xy_CK = self.xy_CK - (self.x_PC / n_P1).T @ self.y_PK
        varies_C = xx_CC.diagonal() > 1e-12 * square_C
        std_C = torch.where(varies_C, (xx_CC.diagonal() / n).clamp(min=0).sqrt(), torch.inf)
        correlation_CC, target_CK = xx_CC / n / (std_C[:, None] * std_C), xy_CK / n / std_C[:, None]
        eye_CC = torch.eye(len(xx_CC), dtype=torch.float64, device=xx_CC.device)
        heads = [torch.linalg.solve(correlation_CC + ridge * eye_CC, target_CK) for ridge in ridges]
        return torch.stack(heads) / std_C[:, None]

    def error(self, weight_CK: Tensor, of: "Moments") -> float:
        """Mean squared error on this fold of a head with this W and the offsets fitted on ``of``."""
        n_P1 = of.n_P[:, None]
        x_mean_PC = torch.where(n_P1 > 0, of.x_PC / n_P1.clamp(min=1), of.x_PC.sum(0) / n_P1.sum())
        y_mean_PK = torch.where(n_P1 > 0, of.y_PK / n_P1.clamp(min=1), of.y_PK.sum(0) / n_P1.sum())
        b_PK = y_mean_PK - x_mean_PC @ weight_CK
        left_PK = self.y_PK - self.x_PC @ weight_CK
        square = self.yy - 2 * (weight_CK * self.xy_CK).sum()
        square += ((self.xx_CC @ weight_CK) * weight_CK).sum()
        square += (self.n_P[:, None] * b_PK.square()).sum() - 2 * (b_PK * left_PK).sum()
        return float(square / (self.n_P.sum() * self.y_PK.shape[1]))


class StreamedRidge:
    """Streaming ridge regression of y_FPK on x_FPC, with an offset for each position and value.

    Args:
        ridges: strengths to choose from, by the error on the frames held back.
        device: where the sums are kept and added up.

    Attributes:
        ridge: the chosen strength, after :meth:`head`.
    """

    def __init__(self, ridges: Iterable[float] = RIDGES, device: torch.device | str = "cpu"):
        self.ridges, self.device, self.ridge = tuple(ridges), torch.device(device), 0.0
        self._folds: list[Moments] = []

    def add(self, x_FPC: Tensor, y_FPK: Tensor, held_F: Tensor) -> None:
        """Adds a batch of frames.

        Args:
            x_FPC, y_FPK: floating numbers; y is NaN where unknown.
            held_F: bool, True for frames that choose the ridge strength.

        Raises:
            ProbeError: a token with a known value is not finite.
        """
        x, y = x_FPC.to(self.device, torch.float64), y_FPK.to(self.device, torch.float64)
        known, held_F = ~y.isnan(), held_F.to(self.device)
        some, whole = known.any(-1), known.all(-1)
        if not (x.isfinite().all(-1) | ~some).all():
            raise ProbeError("Some tokens to fit are NaN or infinite.")
        if not self._folds:
            self._start(torch.where(some[..., None], x, 0.0), some, y.shape[-1])
        x, y = torch.where(some[..., None], x - self._shift_PC, 0.0), torch.where(known, y, 0.0)
        self._folds[0].add(x[~held_F], y[~held_F], whole[~held_F])
        self._folds[1].add(x[held_F], y[held_F], whole[held_F])
        self._some_P += some.sum(0)
        self._x_PC += x.sum(0)
        self._known_PK += known.sum(0)
        self._y_PK += y.sum(0)

    def _start(self, x_FPC: Tensor, some_FP: Tensor, K: int) -> None:
        P, C = x_FPC.shape[1:]
        self._shift_PC = x_FPC.sum(0) / some_FP.sum(0).clamp(min=1)[:, None]
        self._folds = [Moments.zeros(P, C, K, self.device) for _ in range(2)]
        sizes = ((P,), (P, C), (P, K), (P, K))
        self._some_P, self._x_PC, self._known_PK, self._y_PK = (
            torch.zeros(size, dtype=torch.float64, device=self.device) for size in sizes
        )

    def head(self) -> tuple[Tensor, Tensor, Tensor]:
        """Fits weight_CK, offset_PK (NaN where a value was never known) and the mean of all values; the sums
        are freed.

        Raises:
            ProbeError: of no token everything is known, among the frames held back or among the others.
        """
        if not self._folds or any(fold.n_P.sum() == 0 for fold in self._folds):
            raise ProbeError(
                "No patch lies wholly in the range of depth, in the episodes to fit on or in those that "
                "choose the ridge strength: is the depth in metres, and far enough?"
            )
        fitted, held = self._folds
        errors = [
            held.error(weight_CK, fitted) for weight_CK in fitted.solved(self._square(fitted), self.ridges)
        ]
        self.ridge = self.ridges[int(torch.tensor(errors).argmin())]
        everything = fitted + held
        (weight_CK,) = everything.solved(self._square(everything), [self.ridge])
        x_mean_PC = self._shift_PC + self._x_PC / self._some_P.clamp(min=1)[:, None]
        mean_PK = self._y_PK / self._known_PK  # 0 / 0 is NaN
        self._folds = []
        return weight_CK.cpu(), (mean_PK - x_mean_PC @ weight_CK).cpu(), mean_PK.nanmean().cpu()

    def _square(self, of: Moments) -> Tensor:
        """Sum of squares of the raw channels."""
        shift = self._shift_PC
        crossed_C = 2 * (shift * of.x_PC).sum(0) + (of.n_P[:, None] * shift.square()).sum(0)
        return of.xx_CC.diagonal() + crossed_C

    @property
    def bytes(self) -> int:
        """Memory of the sums in bytes."""
        held = [tensor for fold in self._folds for tensor in vars(fold).values()]
        held += [self._shift_PC, self._some_P, self._x_PC, self._known_PK, self._y_PK] if held else []
        return sum(tensor.nbytes for tensor in held)


class StreamedProbe:
    """Linear depth probe (:class:`DepthProbe`) fitted batch by batch.

    Args:
        sub_grid, far, ridges: of the :class:`DepthProbe`.
        device: see :class:`StreamedRidge`.
    """

    def __init__(
        self,
        sub_grid: int,
        far: float = FAR,
        ridges: Iterable[float] = RIDGES,
        device: torch.device | str = "cpu",
    ):
        self.sub_grid, self.far = sub_grid, far
        self.fitting = StreamedRidge(ridges, device)
        self._grid: tuple[int, ...] = ()
        self._range = (torch.inf, -torch.inf)

    def add(self, tokens_FVHWC: Tensor, cells_FVhw: Tensor, held_F: Tensor) -> None:
        """Adds a batch of frames.

        Args:
            tokens_FVHWC: any floating dtype.
            cells_FVhw: depth on the sub-grid, NaN where unknown (``VisualTokens.depth``).
            held_F: bool, True for frames that choose the ridge strength.
        """
        self._grid = tuple(tokens_FVHWC.shape[1:4])
        target_FPK = per_token(cells_FVhw, self.sub_grid).flatten(1, 3)
        self.fitting.add(tokens_FVHWC.flatten(1, 3), target_FPK, held_F)
        seen = cells_FVhw[~cells_FVhw.isnan()]
        if len(seen):
            self._range = min(self._range[0], float(seen.min())), max(self._range[1], float(seen.max()))

    def fit(self) -> DepthProbe:
        """The fitted probe; raises :class:`ProbeError` if there was too little depth."""
        weight_CK, offset_PK, mean = self.fitting.head()
        head = Head(weight_CK, offset_PK.unflatten(0, self._grid), mean)
        return DepthProbe.fitted(head, self.fitting.ridge, self._range, sub_grid=self.sub_grid, far=self.far)
