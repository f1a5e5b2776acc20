// SPDX-License-Identifier: Apache-2.0

package node

import (
	"slices"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/probe"
)

const (
	// selfCheckInterval is how often a gateway that is down looks whether it could work.
	selfCheckInterval = 2 * time.Second
	// blockedFor is how long the server of a network may forward nothing before it says that it is down.
	blockedFor = 2 * time.Second
	// heardFresh is how old a sign of life may be for that.
	heardFresh = 3 * time.Second
)

// health is what a node knows about itself as a gateway, and as the server of networks. The zero value is up.
type health struct {
	hold     probe.HoldDown
	draining bool      // a person wants so; a restart ends it
	undone   bool      // a person took that back, which needs no waiting
	blocked  time.Time // since when the host has not forwarded as it should, at the end of each turn; zero if it does
}

// look takes in whether the host forwards. It returns how soon to look again, 0 for no wish.
func (h *health) look(forwards bool, now time.Time) time.Duration {
	switch {
	case forwards:
		h.blocked = time.Time{}
	case h.blocked.IsZero():
		h.blocked = now
		return blockedFor
	}
	return 0
}

// Drain notes that a person wants this node to be a gateway no more, or with undo that it
// may be one again.
func (m *Memory) Drain(undo bool) { m.health.draining, m.health.undone = !undo, undo }

// selfVerdict is what follows from looking at oneself.
type selfVerdict struct {
	verdicts     []mesh.Verdict // at most one
	requestSigns []mesh.ID      // who should give a sign of life
	recheckAfter time.Duration  // how soon to look again; 0 for no wish
}

// verdictOnSelf publishes that this node is draining, if a person wants that, that it is down, if it serves a
// network and sees that it forwards nothing, which nobody else would notice, or that it is up again after it was down. Then the own record has said before that its terms have ended:
// the others must not find it a gateway, or the server of a network, the moment it is up.
func (m *Memory) verdictOnSelf(in Input, own mesh.Record) selfVerdict {
	h, standing := &m.health, in.standing()
	next := mesh.Verdict{Author: in.Self.Public, Subject: in.Self.ID(), Epoch: standing.Epoch + 1}
	if IsUp(standing) {
		h.hold.Recovered(in.Now)
		h.undone = false
		switch wait := h.blocked.Add(blockedFor).Sub(in.Now); {
		case h.draining:
			next.State = mesh.HealthDraining
		case h.blocked.IsZero() || len(own.Serving) == 0:
			return selfVerdict{}
		case wait > 0:
			return selfVerdict{recheckAfter: wait}
		default:
			next.State = mesh.HealthDown
		}
		return selfVerdict{verdicts: []mesh.Verdict{next}}
	}
	if h.draining {
		return selfVerdict{}
	}
	var ask []mesh.ID
	if !h.undone {
		if wait := h.hold.Failed(in.Now); wait > 0 {
			return selfVerdict{recheckAfter: wait}
		}
	}
	if own.Term.Since != 0 || len(own.Serving) > 0 {
		return selfVerdict{recheckAfter: soon}
	}
	if !h.undone {
		var able bool
		if able, ask = m.canForward(in, own); !able {
			return selfVerdict{requestSigns: ask, recheckAfter: selfCheckInterval}
		}
	}
	next.State, next.Record = mesh.HealthUp, own.Sequence
	return selfVerdict{verdicts: []mesh.Verdict{next}, requestSigns: ask}
}

// standing returns the verdict on this node as a gateway that counts.
func (in Input) standing() mesh.Verdict {
	return mesh.GatewayVerdicts(in.View.Verdicts, in.View.Records)[in.Self.ID()]
}

// IsUp reports whether a verdict, or that there is none, lets a node be a gateway.
func IsUp(v mesh.Verdict) bool { return v.State == "" || v.State == mesh.HealthUp }

// canForward reports whether this node could be a gateway: it forwards, and hears others
// of its location and from outside, each on their own network. A node that is not alive
// anyway need not be heard on the LAN. It also returns whom to ask for a sign of life.
func (m *Memory) canForward(in Input, own mesh.Record) (able bool, ask []mesh.ID) {
	if !m.health.blocked.IsZero() {
		return false, nil
	}
	if located, ok := ownRecord(in); ok {
		own.Segment = located.Segment
	}
	var beside, outside []mesh.ID
	for _, r := range in.View.Records {
		switch id := r.ID(); {
		case id == in.Self.ID():
		case !r.SameLAN(&own):
			outside = append(outside, id)
		case in.View.Alive[id]:
			beside = append(beside, id)
		}
	}
	hears := func(ids []mesh.ID) bool {
		ask = append(ask, ids[:min(len(ids), 3)]...)
		fresh := func(id mesh.ID) bool { return in.Now.Sub(in.LastHeard[id]) <= heardFresh }
		return len(ids) == 0 || slices.ContainsFunc(ids, fresh)
	}
	near, far := hears(beside), hears(outside)
	return near && far, ask
}

// forwards reports whether the kernel forwards as it should, and no firewall that we can't
// change is known to keep it from that.
func forwards(desired, observed netcfg.State) bool {
	if observed.FilterErr == nil && len(netcfg.Problems(observed, desired)) > 0 {
		return false
	}
	return !slices.ContainsFunc(desired.Sysctls, func(s netcfg.Sysctl) bool {
		return strings.Contains(s.Key, "forward") && !slices.Contains(observed.Sysctls, s)
	})
}
