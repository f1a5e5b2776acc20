// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"
)

// How a router is searched for, see UPnP Device Architecture 1.1, section 1.3.
const (
	ssdpPort = 1900
	// ssdpPatience is for answers, which a router may put off by the MX second.
	ssdpPatience = 2 * time.Second
	ssdpResend   = 500 * time.Millisecond
	// ssdpMax is the longest answer that is read, and maxLocations bounds how many different
	// ones are looked at: somebody on the link may send them in the gateway's name.
	ssdpMax      = 2048
	maxLocations = 4
)

// ssdpTargets are what a router may say that it is.
var ssdpTargets = []string{
	"urn:schemas-upnp-org:device:InternetGatewayDevice:1",
	"urn:schemas-upnp-org:device:InternetGatewayDevice:2",
}

// searchRequest returns the datagram of a search.
func searchRequest(target string) []byte {
	return fmt.Appendf(nil, "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:%d\r\nST: %s\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\r\n", ssdpPort, target)
}

// search looks for descriptions of the gateway, and calls try with each until that succeeds.
func search(ctx context.Context, gateway, source netip.Addr, try func(*url.URL) error) error {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)))
	if err != nil {
		return fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	var errs []error
	var seen []string
	buf := make([]byte, ssdpMax)
	for end := time.Now().Add(ssdpPatience); ctx.Err() == nil && time.Now().Before(end) && len(seen) < maxLocations; {
		sendSearch(conn, gateway)
		_ = conn.SetReadDeadline(time.Now().Add(ssdpResend))
		for ctx.Err() == nil && time.Now().Before(end) {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				break
			}
			if from.Addr().Unmap() != gateway {
				continue
			}
			at, err := location(buf[:n], gateway)
			if err != nil || slices.Contains(seen, at.String()) || len(seen) == maxLocations {
				continue
			}
			seen = append(seen, at.String())
			if err := try(at); err == nil {
				return nil
			} else {
				errs = append(errs, err)
			}
		}
	}
	return fmt.Errorf("%w: %w", errNoAnswer, errors.Join(append(errs, ctx.Err())...))
}

// sendSearch sends a search to everybody on the link and to the gateway alone: a host's firewall takes
// what the latter sends for an answer. Without success nobody answers.
func sendSearch(conn *net.UDPConn, gateway netip.Addr) {
	for _, to := range []netip.Addr{netip.AddrFrom4([4]byte{239, 255, 255, 250}), gateway} {
		for _, target := range ssdpTargets {
			_, _ = conn.WriteToUDPAddrPort(searchRequest(target), netip.AddrPortFrom(to, ssdpPort))
		}
	}
}

// location returns where an answer says that the description of the gateway is. It must be at
// the gateway itself.
func location(answer []byte, gateway netip.Addr) (*url.URL, error) {
	response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), nil)
	if err != nil {
		return nil, fmt.Errorf("read answer to a search: %w", err)
	}
	_ = response.Body.Close() // it has none
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", response.StatusCode)
	}
	at, err := url.Parse(response.Header.Get("Location"))
	if err != nil {
		return nil, fmt.Errorf("read location: %w", err)
	}
	return at, checkURL(at, gateway)
}

// errElsewhere means that the gateway names another host.
var errElsewhere = errors.New("the address is not the gateway's")

// checkURL returns an error unless a URL is one of HTTP at the gateway.
func checkURL(u *url.URL, gateway netip.Addr) error {
	if u.Scheme != "http" || u.Opaque != "" || u.User != nil {
		return errors.New("the address is not one of HTTP")
	}
	if a, err := netip.ParseAddr(u.Hostname()); err != nil || a != gateway {
		return errElsewhere
	}
	return nil
}
