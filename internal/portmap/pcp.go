// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// What PCP is made of, see RFC 6887, sections 7, 11 and 14.
const (
	pcpPort     = 5351 // of PCP and NAT-PMP
	pcpVersion  = 2
	pcpResponse = 0x80 // the bit of an opcode
	pcpAnnounce = 0
	pcpMap      = 1
	protocolUDP = 17

	pcpHeader     = 24 // bytes
	pcpMapLength  = pcpHeader + 36
	pcpMaxLength  = 1100
	pcpBadVersion = 1 // result code UNSUPP_VERSION
)

// errNotForUs is what answers have that are for others, late, or made up.
var errNotForUs = errors.New("no answer to this request")

// refusal is a result code of PCP, see RFC 6887, section 7.4.
type refusal byte

func (r refusal) Error() string { return fmt.Sprintf("PCP result code %d", byte(r)) }

// pcpRequest is a request of MAP, or of ANNOUNCE, which has no more than a client.
type pcpRequest struct {
	opcode   byte
	lifetime time.Duration // 0 removes the mapping
	client   netip.Addr    // this host's address
	nonce    [12]byte
	internal uint16
	external netip.AddrPort // that is wanted
}

// encode returns the datagram.
func (q pcpRequest) encode() []byte {
	b := make([]byte, pcpHeader, pcpMapLength)
	b[0], b[1] = pcpVersion, q.opcode
	binary.BigEndian.PutUint32(b[4:], uint32(q.lifetime/time.Second))
	client := q.client.As16()
	copy(b[8:], client[:])
	if q.opcode == pcpAnnounce {
		return b
	}
	b = append(b, q.nonce[:]...)
	b = append(b, protocolUDP, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, q.internal)
	b = binary.BigEndian.AppendUint16(b, q.external.Port())
	external := q.external.Addr().As16()
	return append(b, external[:]...)
}

// pcpAnswer is what a router has said to a request.
type pcpAnswer struct {
	epoch    uint32
	lifetime time.Duration
	external netip.AddrPort
}

// parse reads the answer to a request. Its error is errNotForUs if the datagram is something
// else, and a refusal, beside an epoch, if the router does not do what was asked.
func (q pcpRequest) parse(b []byte) (pcpAnswer, error) {
	if len(b) >= 4 && b[0] == 0 && b[1]&pcpResponse != 0 && b[3] == pcpBadVersion {
		return pcpAnswer{}, refusal(pcpBadVersion) // it speaks NAT-PMP only (RFC 6887, appendix A)
	}
	if len(b) < pcpHeader || len(b) > pcpMaxLength || len(b)%4 != 0 || b[1] != q.opcode|pcpResponse {
		return pcpAnswer{}, errNotForUs
	}
	if b[0] != pcpVersion {
		if b[3] == pcpBadVersion {
			return pcpAnswer{}, refusal(pcpBadVersion)
		}
		return pcpAnswer{}, errNotForUs
	}
	a := pcpAnswer{epoch: binary.BigEndian.Uint32(b[8:]), lifetime: time.Duration(binary.BigEndian.Uint32(b[4:])) * time.Second}
	code := refusal(b[3])
	if q.opcode == pcpAnnounce {
		return a, nil // whatever the code, it has said what time it is
	}
	if len(b) < pcpMapLength {
		return pcpAnswer{}, errNotForUs
	}
	body := b[pcpHeader:]
	if !bytes.Equal(body[:12], q.nonce[:]) || body[12] != protocolUDP || binary.BigEndian.Uint16(body[16:]) != q.internal {
		return pcpAnswer{}, errNotForUs
	}
	if code != 0 {
		return a, code
	}
	addr, _ := netip.AddrFromSlice(body[20:36])
	a.external = netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(body[18:]))
	return a, nil
}

// pcp speaks PCP with a gateway.
type pcp struct {
	gateway, source netip.Addr
	random          io.Reader
}

// pcpTries are how long answers are waited for. The gateway is one hop away, and RFC 6887 begins
// with three seconds for those that are not.
var pcpTries = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second}

// ask sends a request until there is an answer.
func (p *pcp) ask(ctx context.Context, q pcpRequest) (pcpAnswer, error) {
	q.client = p.source
	// A connected socket takes nothing but what comes from the gateway's port.
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.source, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.gateway, pcpPort)))
	if err != nil {
		return pcpAnswer{}, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, pcpMaxLength+1)
	for _, patience := range pcpTries {
		if ctx.Err() == nil {
			_ = conn.SetDeadline(time.Now().Add(patience))
		}
		if _, err = conn.Write(q.encode()); err != nil {
			break // nobody listens there
		}
		for ctx.Err() == nil {
			var n int
			if n, err = conn.Read(buf); err != nil {
				break
			}
			if a, err := q.parse(buf[:n]); !errors.Is(err, errNotForUs) {
				return a, err
			}
		}
		var timeout net.Error
		if ctx.Err() != nil || !errors.As(err, &timeout) || !timeout.Timeout() {
			break
		}
	}
	return pcpAnswer{}, fmt.Errorf("%w: %w", errNoAnswer, errors.Join(err, ctx.Err()))
}

func (p *pcp) Map(ctx context.Context, n Mapping) result {
	if n.Nonce == [12]byte{} {
		if _, err := io.ReadFull(p.random, n.Nonce[:]); err != nil {
			return result{err: fmt.Errorf("make nonce: %w", err)}
		}
	}
	a, err := p.ask(ctx, pcpRequest{opcode: pcpMap, lifetime: lifetime, nonce: n.Nonce, internal: n.Internal.Port(), external: n.External})
	r := result{mapping: n, lifetime: a.lifetime, err: err}
	r.mapping.External = a.external
	if err == nil || errors.As(err, new(refusal)) && !errors.Is(err, refusal(pcpBadVersion)) {
		r.reading = reading{hasEpoch: true, epoch: a.epoch}
	}
	return r
}

func (p *pcp) Check(ctx context.Context, _ Mapping) result {
	a, err := p.ask(ctx, pcpRequest{opcode: pcpAnnounce})
	return result{reading: reading{hasEpoch: err == nil, epoch: a.epoch}, err: err}
}

func (p *pcp) Remove(ctx context.Context, n Mapping) error {
	_, err := p.ask(ctx, pcpRequest{opcode: pcpMap, nonce: n.Nonce, internal: n.Internal.Port(), external: netip.AddrPortFrom(netip.IPv4Unspecified(), 0)})
	return err
}
