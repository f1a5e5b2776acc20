// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// protocol asks a gateway. Errors wrap errNoAnswer if it does not speak the protocol, or not now.
type protocol interface {
	// Map makes or renews a mapping.
	Map(context.Context, Mapping) result
	// Check reads how the router is.
	Check(context.Context, Mapping) result
	Remove(context.Context, Mapping) error
}

// protocols returns what a gateway may speak.
func protocols(gateway, source netip.Addr, random io.Reader) map[Protocol]protocol {
	return map[Protocol]protocol{
		PCP:    &pcp{gateway: gateway, source: source, random: random},
		NATPMP: &natpmp{gateway: gateway},
		UPnP:   newUPnP(gateway, source, random),
	}
}

// perform asks the gateway, and checks what it answers.
func (a action) perform(ctx context.Context, p protocol) result {
	switch a.kind {
	case toRemove:
		return result{err: p.Remove(ctx, a.mapping)}
	case toCheck:
		r := p.Check(ctx, a.mapping)
		if r.reading.address.IsValid() && checkExternal(r.reading.address) != nil {
			r.reading.address = netip.Addr{} // it has none for now
		}
		return r
	default:
		r := p.Map(ctx, a.mapping)
		if r.err == nil {
			r.err = r.check()
		}
		if r.err != nil {
			r.reading.address = netip.Addr{}
		}
		return r
	}
}

// check returns an error unless a mapping can be used.
func (r result) check() error {
	switch {
	case r.mapping.External.Port() == 0:
		return errors.New("external port 0")
	case r.lifetime <= 0 && !r.mapping.Permanent:
		return errors.New("the mapping has no lifetime")
	default:
		return checkExternal(r.mapping.External.Addr())
	}
}

// checkExternal returns an error unless an address may be that of a router on its other side.
func checkExternal(a netip.Addr) error {
	if !a.Is4() || !a.IsGlobalUnicast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return fmt.Errorf("the router's external address is %v", a)
	}
	return nil
}

// Remove removes mappings from their routers. Its error is about those that were not removed and
// don't end by themselves.
func Remove(ctx context.Context, all []Mapping) (removed []Mapping, err error) {
	for _, n := range all {
		e := protocols(n.Gateway, n.Internal.Addr(), nil)[n.Protocol]
		if e == nil {
			continue
		}
		switch failed := e.Remove(ctx, n); {
		case failed == nil:
			removed = append(removed, n)
		case n.Permanent:
			err = errors.Join(err, fmt.Errorf("remove mapping of %v to %v from the router %v: %s", n.External, n.Internal, n.Gateway, printable(failed)))
		}
	}
	return removed, err
}
