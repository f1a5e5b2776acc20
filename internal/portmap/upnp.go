// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"context"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/huin/goupnp"
	"github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/soap"
)

const (
	// maxBody is the most that is read of an answer, in bytes; descriptions of routers have some
	// thousands. The decoder knows no entities but those of XML itself.
	maxBody = 1 << 16
	// httpTimeout is for one request, and upnpTimeout for all of one action: small routers take
	// seconds.
	httpTimeout = 5 * time.Second
	upnpTimeout = 20 * time.Second
	// description is what the router shows its owner.
	description = "meshd"
	// otherPorts is how many other external ports are tried if another host has the wanted one.
	otherPorts = 3
)

// Error codes of UPnP, see WANIPConnection:1, section 2.4.16, and WANIPConnection:2.
const (
	upnpInvalidAction  = 401
	upnpInvalidArgs    = 402
	upnpNoSuchEntry    = 714
	upnpConflict       = 718
	upnpOnlyPermanent  = 725
	upnpOtherMechanism = 729
)

// upnp speaks with a gateway by UPnP.
type upnp struct {
	gateway, source netip.Addr
	random          io.Reader
	http            http.Client
	service         wanConnection // nil until found
	permanent       bool          // it only makes mappings that stay
}

// wanConnection is the service of a router that maps ports: one of those in package
// internetgateway2.
type wanConnection interface {
	AddPortMappingCtx(ctx context.Context, remote string, external uint16, proto string, internal uint16, client string, enabled bool, description string, lease uint32) error
	GetSpecificPortMappingEntryCtx(ctx context.Context, remote string, external uint16, proto string) (internal uint16, client string, enabled bool, description string, lease uint32, err error)
	DeletePortMappingCtx(ctx context.Context, remote string, external uint16, proto string) error
	GetExternalIPAddressCtx(ctx context.Context) (string, error)
}

// anyPort is what version 2 of WANIPConnection has besides: the router chooses another port if
// the wanted one is taken.
type anyPort interface {
	AddAnyPortMappingCtx(ctx context.Context, remote string, external uint16, proto string, internal uint16, client string, enabled bool, description string, lease uint32) (uint16, error)
}

func newUPnP(gateway, source netip.Addr, random io.Reader) *upnp {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))}
	transport := &http.Transport{ // without a proxy
		DialContext:            dialer.DialContext,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxBody,
	}
	return &upnp{gateway: gateway, source: source, random: random, http: http.Client{
		Transport:     gatewayOnly{gateway, transport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       httpTimeout,
	}}
}

// gatewayOnly sends requests to the gateway's own address, and reads no more than maxBody.
type gatewayOnly struct {
	gateway netip.Addr
	next    http.RoundTripper
}

func (g gatewayOnly) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := checkURL(r.URL, g.gateway); err != nil {
		return nil, err
	}
	response, err := g.next.RoundTrip(r)
	if err == nil {
		response.Body = body{io.LimitReader(response.Body, maxBody), response.Body}
	}
	return response, err
}

// body is a body of which no more than a part is read.
type body struct {
	io.Reader
	io.Closer
}

// find returns the gateway's service. It is searched for once, and again after an error.
func (p *upnp) find(ctx context.Context) (wanConnection, error) {
	if p.service == nil {
		err := search(ctx, p.gateway, p.source, func(at *url.URL) (err error) {
			p.service, err = p.describe(ctx, at)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return p.service, nil
}

// describe reads a description, and returns the first service in it that has an address.
func (p *upnp) describe(ctx context.Context, at *url.URL) (wanConnection, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := p.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("get description: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get description: status %d", response.StatusCode)
	}
	clients, err := services(response.Body, at, p.gateway)
	if err != nil {
		return nil, err
	}
	for _, c := range clients {
		c.SOAPClient.HTTPClient = p.http
		service := connection(c)
		if _, err := externalAddress(ctx, service); err == nil {
			return service, nil
		}
	}
	return nil, errors.New("no connection to the internet in the description")
}

// serviceTypes are those that map ports, the best first.
var serviceTypes = []string{
	internetgateway2.URN_WANIPConnection_2, internetgateway2.URN_WANIPConnection_1, internetgateway2.URN_WANPPPConnection_1,
}

// maxServices bounds how many services of one description are tried. Routers have one for each
// line.
const maxServices = 4

// services reads the services that map ports out of a description, the best first. They must be
// at the gateway itself.
func services(description io.Reader, at *url.URL, gateway netip.Addr) ([]goupnp.ServiceClient, error) {
	d := xml.NewDecoder(description)
	// What is read of it is ASCII, whatever it says that it is.
	d.CharsetReader = func(_ string, input io.Reader) (io.Reader, error) { return input, nil }
	var root goupnp.RootDevice
	if err := d.Decode(&root); err != nil {
		return nil, fmt.Errorf("read description: %w", err)
	}
	root.SetURLBase(at) // and not that of its URLBase, which may be anywhere
	var all []goupnp.ServiceClient
	for _, t := range serviceTypes {
		for _, s := range root.Device.FindService(t) {
			if s.ControlURL.Ok && checkURL(&s.ControlURL.URL, gateway) == nil && len(all) < maxServices {
				all = append(all, goupnp.ServiceClient{SOAPClient: soap.NewSOAPClient(s.ControlURL.URL), Service: s})
			}
		}
	}
	return all, nil
}

// connection returns the service of its type.
func connection(c goupnp.ServiceClient) wanConnection {
	switch c.Service.ServiceType {
	case internetgateway2.URN_WANIPConnection_2:
		return &internetgateway2.WANIPConnection2{ServiceClient: c}
	case internetgateway2.URN_WANIPConnection_1:
		return &internetgateway2.WANIPConnection1{ServiceClient: c}
	default:
		return &internetgateway2.WANPPPConnection1{ServiceClient: c}
	}
}

func externalAddress(ctx context.Context, s wanConnection) (netip.Addr, error) {
	text, err := s.GetExternalIPAddressCtx(ctx)
	if err != nil {
		return netip.Addr{}, err
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, errors.New("the router's external address can't be read")
	}
	return a, checkExternal(a)
}

// codeOf returns an error's code of UPnP, 0 for none.
func codeOf(err error) int {
	var fault *soap.SOAPFaultError
	if !errors.As(err, &fault) {
		return 0
	}
	return fault.Detail.UPnPError.Errorcode
}

// ask calls do with the gateway's service, and with the one that is found anew if the former one
// does not answer: after a restart it may have another port. Errors are as the machine takes
// them.
func (p *upnp) ask(ctx context.Context, do func(context.Context, wanConnection) error) error {
	ctx, cancel := context.WithTimeout(ctx, upnpTimeout)
	defer cancel()
	for {
		former := p.service != nil
		s, err := p.find(ctx)
		if err == nil {
			err = do(ctx, s)
		}
		if err == nil || codeOf(err) != 0 || errors.Is(err, errTaken) {
			return err
		}
		p.service = nil
		if !former || ctx.Err() != nil {
			return fmt.Errorf("%w: %w", errNoAnswer, err)
		}
	}
}

const udp = "UDP"

func (p *upnp) Map(ctx context.Context, n Mapping) (r result) {
	r.err = p.ask(ctx, func(ctx context.Context, s wanConnection) (err error) {
		if r.reading.address, err = externalAddress(ctx, s); err != nil {
			return err
		}
		port, err := p.add(ctx, s, n)
		r.mapping, r.lifetime = n, lifetime
		r.mapping.External, r.mapping.Permanent = netip.AddrPortFrom(r.reading.address, port), p.permanent
		return err
	})
	return r
}

// errTaken means that the router has given a port to another host.
var errTaken = errors.New("another host has the external port")

// add maps the wanted external port, or another one if that is another host's.
func (p *upnp) add(ctx context.Context, s wanConnection, n Mapping) (external uint16, err error) {
	external = n.External.Port()
	for range 1 + otherPorts {
		got, err := p.try(ctx, s, external, n.Internal.Port())
		if !errors.Is(err, errTaken) {
			return got, err
		}
		if external, err = p.otherPort(); err != nil {
			return 0, err
		}
	}
	return 0, errTaken
}

// try maps an external port, or one that the router chooses if it can.
func (p *upnp) try(ctx context.Context, s wanConnection, external, internal uint16) (got uint16, err error) {
	if !p.isTaken(ctx, s, external) {
		err = p.addPort(ctx, s, external, internal)
		if c := codeOf(err); c != upnpConflict && c != upnpOtherMechanism {
			return external, err
		}
	}
	if v2, ok := s.(anyPort); ok {
		if got, err = v2.AddAnyPortMappingCtx(ctx, "", external, udp, internal, p.source.String(), true, description, p.lease()); err == nil {
			return got, nil
		}
	}
	return 0, errTaken
}

// isTaken reports whether the router maps a port to another host. Some would give it to this one.
func (p *upnp) isTaken(ctx context.Context, s wanConnection, external uint16) bool {
	_, client, _, _, _, err := s.GetSpecificPortMappingEntryCtx(ctx, "", external, udp)
	return err == nil && client != p.source.String()
}

// addPort maps an external port, for ever if the router makes no other mappings.
func (p *upnp) addPort(ctx context.Context, s wanConnection, external, internal uint16) error {
	add := func() error {
		return s.AddPortMappingCtx(ctx, "", external, udp, internal, p.source.String(), true, description, p.lease())
	}
	err := add()
	if c := codeOf(err); !p.permanent && (c == upnpOnlyPermanent || c == upnpInvalidArgs) {
		p.permanent = true
		if err = add(); err != nil {
			p.permanent = false
		}
	}
	return err
}

// lease is what is asked for, in seconds; 0 is for ever.
func (p *upnp) lease() uint32 {
	if p.permanent {
		return 0
	}
	return uint32(lifetime / time.Second)
}

// otherPort returns a port at random, of those that nobody has by default.
func (p *upnp) otherPort() (uint16, error) {
	var b [2]byte
	if _, err := io.ReadFull(p.random, b[:]); err != nil {
		return 0, fmt.Errorf("choose port: %w", err)
	}
	return 1<<15 | binary.BigEndian.Uint16(b[:]), nil
}

func (p *upnp) Check(ctx context.Context, n Mapping) (r result) {
	r.err = p.ask(ctx, func(ctx context.Context, s wanConnection) (err error) {
		if r.reading.address, err = externalAddress(ctx, s); err != nil {
			return err
		}
		internal, client, enabled, _, _, err := s.GetSpecificPortMappingEntryCtx(ctx, "", n.External.Port(), udp)
		switch codeOf(err) {
		case upnpNoSuchEntry:
			r.reading.gone = true
			return nil
		case upnpInvalidAction: // which not all routers have
			return nil
		}
		r.reading.gone = err == nil && (client != p.source.String() || internal != n.Internal.Port() || !enabled)
		return err
	})
	return r
}

func (p *upnp) Remove(ctx context.Context, n Mapping) error {
	return p.ask(ctx, func(ctx context.Context, s wanConnection) error {
		if p.isTaken(ctx, s, n.External.Port()) {
			return nil // it is not ours any more
		}
		err := s.DeletePortMappingCtx(ctx, "", n.External.Port(), udp)
		if codeOf(err) == upnpNoSuchEntry {
			return nil
		}
		return err
	})
}
