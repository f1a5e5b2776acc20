// SPDX-License-Identifier: Apache-2.0

package path

import (
	"math/bits"
	"time"
)

// Report is what a machine knows, for people.
type Report struct {
	Path   Path // in use
	Far    Kind // how the peer's packets leave on it, as the peer has said last
	Proved bool // the peer answers on it
	Since  time.Time
	RTT    time.Duration // of the path in use; 0 while unknown
	Loss   float64       // of the last 32 probes on the path in use, 0 to 1
	MTU    int           // the longest packet inside the tunnel that passes on it, at most the tunnel's MTU; 0 while unknown
	Tried  []Tried       // all paths, in their order
	// Received is when WireGuard received something last of a session that works; zero for never.
	Received time.Time
	Renew    time.Time // when WireGuard's session was to be begun anew, last; zero for never
}

// Kind returns the kind of the path in use: that of the worse end, so that both come to the same.
func (r Report) Kind() Kind { return worse(r.Path.Kind, r.Far) }

// Tried is what a machine knows of one path.
type Tried struct {
	Path     Path
	Open     bool          // a probe may go there without punching
	RTT      time.Duration // 0 while unknown
	Loss     float64       // of the last 32 probes
	Answered time.Time     // when the peer answered there last; zero for never
}

// Report returns what the machine knows.
func (m *Machine) Report(now time.Time) Report {
	r := Report{Since: m.changed, Received: m.passed, Renew: m.Renew(), MTU: m.MTU()}
	r.Path, r.Proved = m.InUse()
	if m.use != nil {
		r.Far, r.RTT, r.Loss = m.use.far, m.use.srtt, m.use.outcomes.loss()
	}
	for _, w := range m.ways {
		r.Tried = append(r.Tried, Tried{Path: w.Path, Open: m.isOpen(w, now), RTT: w.srtt, Loss: w.outcomes.loss(), Answered: w.answered})
	}
	return r
}

// outcomes are those of the last 32 probes on a path.
type outcomes struct {
	lost  uint32 // a bit each, the last one lowest
	count int
}

func (o *outcomes) add(answered bool) {
	o.lost <<= 1
	if !answered {
		o.lost |= 1
	}
	o.count = min(o.count+1, 32)
}

func (o *outcomes) loss() float64 {
	if o.count == 0 {
		return 0
	}
	return float64(o.losses()) / float64(o.count)
}

// losses is how many of them were not answered.
func (o *outcomes) losses() int { return bits.OnesCount32(o.lost) }

// isLossy reports whether a considerable share was lost, as where a relay is full.
func (o *outcomes) isLossy() bool { return o.losses() >= lossyProbes }

// isClean reports whether nothing was lost, of so many that it would hardly be luck on a lossy path.
func (o *outcomes) isClean() bool { return o.count >= cleanProbes && o.lost == 0 }
