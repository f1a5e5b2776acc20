// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	natpmplib "github.com/jackpal/go-nat-pmp"
)

// natpmp speaks NAT-PMP with a gateway. The library takes answers of the gateway only, and no
// context: each call ends after natpmpTimeout at the latest.
type natpmp struct{ gateway netip.Addr }

// natpmpTimeout is for answers of a gateway that is one hop away. RFC 6886 would wait for two
// minutes.
const natpmpTimeout = 1500 * time.Millisecond

func (p *natpmp) client() *natpmplib.Client {
	return natpmplib.NewClientWithTimeout(p.gateway.AsSlice(), natpmpTimeout)
}

// natpmpError tells refusals from silence. The library has texts alone.
func natpmpError(err error) error {
	if err == nil || strings.HasPrefix(err.Error(), "Non-zero result code") {
		return err
	}
	return fmt.Errorf("%w: %w", errNoAnswer, err)
}

func (p *natpmp) Map(ctx context.Context, n Mapping) result {
	r := p.Check(ctx, n) // for the address
	if r.err != nil {
		return r
	}
	port := int(n.Internal.Port())
	made, err := p.client().AddPortMapping("udp", port, int(n.External.Port()), int(lifetime/time.Second))
	if err != nil {
		r.err = natpmpError(err)
		return r
	}
	if int(made.InternalPort) != port {
		r.err = errors.Join(errNoAnswer, errNotForUs)
		return r
	}
	r.mapping, r.lifetime = n, time.Duration(made.PortMappingLifetimeInSeconds)*time.Second
	r.mapping.External = netip.AddrPortFrom(r.reading.address, made.MappedExternalPort)
	r.reading.epoch = made.SecondsSinceStartOfEpoc
	return r
}

func (p *natpmp) Check(context.Context, Mapping) result {
	a, err := p.client().GetExternalAddress()
	if err != nil {
		return result{err: natpmpError(err)}
	}
	return result{reading: reading{hasEpoch: true, epoch: a.SecondsSinceStartOfEpoc, address: netip.AddrFrom4(a.ExternalIPAddress)}}
}

func (p *natpmp) Remove(_ context.Context, n Mapping) error {
	_, err := p.client().AddPortMapping("udp", int(n.Internal.Port()), 0, 0)
	return natpmpError(err)
}
