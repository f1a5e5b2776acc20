// SPDX-License-Identifier: Apache-2.0

package probe

import "time"

const (
	// holdMin and holdMax bound how long a gateway that went down waits before it
	// publishes that it is up again.
	holdMin = 10 * time.Second
	holdMax = 5 * time.Minute
	// relapse is how soon after coming up again a failure doubles the next wait.
	relapse = 10 * time.Minute
)

// HoldDown is the hysteresis that each gateway keeps for itself. After a failure it waits
// 10 s before it publishes that it is up again. With each failure within 10 min after
// that it waits twice as long, up to 5 min, so that a host with an unstable network is
// not a gateway most of the time. The zero Hold is that of a gateway that is up.
type HoldDown struct {
	wait   time.Duration // the last one
	raised time.Time     // when the gateway last came up again
	until  time.Time     // end of the wait; zero while the gateway is up
}

// Failed starts the wait when it is first called for a gateway that is down. It returns
// the rest of the wait: 0 when the gateway may publish that it is up.
func (h *HoldDown) Failed(now time.Time) time.Duration {
	if h.until.IsZero() {
		if h.raised.IsZero() || now.Sub(h.raised) > relapse {
			h.wait = 0
		}
		h.wait = min(max(2*h.wait, holdMin), holdMax)
		h.until = now.Add(h.wait)
	}
	return max(h.until.Sub(now), 0)
}

// Recovered records that the gateway is up.
func (h *HoldDown) Recovered(now time.Time) {
	if !h.until.IsZero() {
		h.raised, h.until = now, time.Time{}
	}
}
