// SPDX-License-Identifier: Apache-2.0

package probe

import "time"

const (
	// holdMin is how long a gateway that has fallen waits at least before it
	// raises itself, and holdMax at most.
	holdMin = 10 * time.Second
	holdMax = 5 * time.Minute
	// relapse is how soon after it was raised a fall makes the next wait longer.
	relapse = 10 * time.Minute
)

// Hold is the hysteresis of a gateway, kept by itself: it waits before it says
// that it is up again, 10 s at first. With each fall within 10 min of that it
// waits twice as long, up to 5 min, so that a host whose network comes and goes
// is no gateway most of the time. The zero Hold has not fallen.
type Hold struct {
	wait   time.Duration
	raised time.Time
	until  time.Time // zero while it has not fallen
}

// Fall notes at the first look that the gateway is down, and returns how much
// longer it has to wait: 0 when it may raise itself.
func (h *Hold) Fall(now time.Time) time.Duration {
	if h.until.IsZero() {
		if h.raised.IsZero() || now.Sub(h.raised) > relapse {
			h.wait = 0
		}
		h.wait = min(max(2*h.wait, holdMin), holdMax)
		h.until = now.Add(h.wait)
	}
	return max(h.until.Sub(now), 0)
}

// Raise notes that the gateway is up.
func (h *Hold) Raise(now time.Time) {
	if !h.until.IsZero() {
		h.raised, h.until = now, time.Time{}
	}
}
