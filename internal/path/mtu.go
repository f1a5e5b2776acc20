// SPDX-License-Identifier: Apache-2.0

package path

import (
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// A path may carry less than the tunnel's MTU needs. Linux's WireGuard lets routers cut its IPv4
// datagrams into fragments (send4 in drivers/net/wireguard/socket.c), which many networks drop;
// no router cuts those of IPv6. So each end sends, on the path in use, probes that are as long as
// WireGuard's longest datagrams and must not be cut. If none of these is answered, and short ones
// are, the longest that passes is found by halves. Answers are short: each end finds out what
// passes in the direction in which it sends.
const (
	// dataOverhead is what WireGuard adds to a packet inside UDP: 16 bytes of header, 16 of
	// authentication (section 5.4.6 of the WireGuard paper).
	dataOverhead = 32
	// mtuUnit is what WireGuard pads packets to. In the kernel it pads none beyond the MTU of the
	// route, but wireguard-go knows only that of the device: multiples fit both.
	mtuUnit     = 16
	mtuTries    = 5                // that must stay unanswered
	mtuTryEvery = time.Second      // or longer, where the round trip is longer
	mtuEvery    = 10 * time.Minute // from one search to the next, with traffic: some 50 bytes a second at most
)

// fit is what is known of the longest packets that pass on a path.
type fit struct {
	mtu   int       // inside the tunnel: its own MTU, or a lower multiple of mtuUnit; 0 while unknown
	again time.Time // when the next search begins; zero for at once

	// The search that is under way.
	try       int // the MTU that is tried; 0 if there is no search
	low, high int // the highest MTU known to pass, and the lowest multiple known not to
	sent      []uint32
	last      time.Time // when the last of these was sent
	misses    int       // how many were not answered, although a short one was
}

// SetMTU sets the MTU of the tunnel to the peer: no longer packets are sent inside. 0 for unknown,
// then nothing is found out.
func (m *Machine) SetMTU(mtu int) {
	if mtu == m.mtu {
		return
	}
	m.mtu = mtu
	for _, w := range m.ways {
		w.fit = fit{}
	}
}

// MTU returns the longest packet inside the tunnel, in bytes, that passes on the path in use: at
// most the tunnel's MTU; 0 while that is unknown.
func (m *Machine) MTU() int {
	if m.use == nil {
		return 0
	}
	return m.use.fit.mtu
}

// longest returns the MTU of which it is tried whether it passes: nothing carries longer datagrams
// than MaxDatagram but straight paths with jumbo frames.
func (m *Machine) longest() int { return min(m.mtu, MaxDatagram-dataOverhead) }

// fitting goes on finding out which packets fit the path in use, and returns what to send for
// that. It is called once a second at least, see Next.
func (m *Machine) fitting(now time.Time) []Action {
	if m.mtu == 0 || !m.works(now) {
		return nil
	}
	w, f := m.use, &m.use.fit
	switch {
	case f.try == 0:
		if now.Before(f.again) || !f.again.IsZero() && !m.isBusy(now) {
			return nil
		}
		f.begin(m.longest())
	case now.Sub(f.last) < max(mtuTryEvery, w.timeout()):
		return nil
	case !w.answered.Before(f.last): // else nothing passes, of whatever length
		if f.misses++; f.misses == mtuTries {
			f.high = (f.try + mtuUnit - 1) / mtuUnit * mtuUnit
			if m.advance(now, f); f.try == 0 {
				return nil
			}
		}
	}
	short := m.probe(now, w)
	m.number++
	long := m.message(Ping, w)
	long.Number, long.Size = m.number, f.try+dataOverhead
	f.sent, f.last = append(f.sent, m.number), now
	return []Action{{Path: w.Path, Message: long}, short}
}

func (f *fit) begin(mtu int) {
	// What the record of each node must allow passes everywhere.
	f.try, f.low, f.high, f.sent, f.misses = mtu, mesh.MinMTU, 0, nil, 0
}

// advance chooses what is tried next, or ends the search.
func (m *Machine) advance(now time.Time, f *fit) {
	f.sent, f.misses = nil, 0
	f.try = (f.low + f.high) / 2 / mtuUnit * mtuUnit
	switch {
	case f.low == m.longest():
		f.mtu = m.mtu
	case f.try <= f.low:
		f.mtu = f.low
	default:
		return
	}
	f.try, f.again = 0, now.Add(mtuEvery)
}

// fits takes the answer to a long probe, and reports whether it was one.
func (m *Machine) fits(now time.Time, w *way, number uint32) bool {
	f := &w.fit
	if !slices.Contains(f.sent, number) {
		return false
	}
	f.low = f.try
	m.advance(now, f)
	return true
}
