// SPDX-License-Identifier: Apache-2.0

package portmap

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hosts numbers the addresses of fake routers. All of 127.0.0.0/8 is this host.
var hosts atomic.Uint32

func newAddr() netip.Addr {
	return netip.AddrFrom4([4]byte{127, 53, 51, byte(hosts.Add(1))})
}

var loopback = netip.MustParseAddr("127.0.0.1")

func random() io.Reader { return rand.NewChaCha8([32]byte{7}) }

// serveUDP answers datagrams until the test ends.
func serveUDP(t *testing.T, at netip.Addr, port uint16, answer func([]byte) [][]byte) {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, port)))
	if err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	ended.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, b := range answer(append([]byte{}, buf[:n]...)) {
				_, _ = conn.WriteToUDPAddrPort(b, from)
			}
		}
	})
	t.Cleanup(func() {
		_ = conn.Close()
		ended.Wait()
	})
}

// pcpReply answers a request of PCP.
func pcpReply(request []byte, code byte, life, epoch uint32, external netip.AddrPort) []byte {
	b := append([]byte{}, request...)
	b[1] |= pcpResponse
	b[2], b[3] = 0, code
	binary.BigEndian.PutUint32(b[4:], life)
	binary.BigEndian.PutUint32(b[8:], epoch)
	clear(b[12:24])
	if len(b) == pcpMapLength {
		binary.BigEndian.PutUint16(b[42:], external.Port())
		a := external.Addr().As16()
		copy(b[44:], a[:])
	}
	return b
}

// natpmpReply answers a request of NAT-PMP.
func natpmpReply(request []byte, code uint16, epoch uint32, address netip.Addr, port uint16) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, request[1] | 0x80}, code)
	b = binary.BigEndian.AppendUint32(b, epoch)
	if request[1] == 0 {
		return append(b, address.AsSlice()...)
	}
	b = append(b, request[4:6]...)
	b = binary.BigEndian.AppendUint16(b, port)
	return append(b, request[8:12]...)
}

// igd is a fake internet gateway device.
type igd struct {
	at          netip.Addr
	service     string            // its type, WANIPConnection:1 unless it says otherwise
	description string            // "" for one with the service
	location    string            // "" for its own
	controlURL  string            // "" for its own
	address     string            // external
	lease       map[uint32]int    // errors by lease: 725 for the others than 0
	entries     map[string]string // hosts by external port
	fails       map[string]int    // errors of actions
	redirect    string

	mu     sync.Mutex
	calls  []string
	server *httptest.Server
}

func newIGD(t *testing.T, d *igd) *igd {
	t.Helper()
	d.at = newAddr()
	if d.service == "" {
		d.service = "WANIPConnection:1"
	}
	if d.address == "" {
		d.address = "203.0.113.9"
	}
	if d.entries == nil {
		d.entries = make(map[string]string)
	}
	d.serve(t)
	serveUDP(t, d.at, ssdpPort, func(b []byte) [][]byte { return [][]byte{d.answer()} })
	return d
}

// serve starts the HTTP server, at a port of its own.
func (d *igd) serve(t *testing.T) {
	l, err := net.Listen("tcp4", netip.AddrPortFrom(d.at, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(d)
	_ = s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	d.mu.Lock()
	d.server = s
	d.mu.Unlock()
}

// answer is that to a search.
func (d *igd) answer() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	location := d.location
	if location == "" {
		location = d.server.URL + "/description.xml"
	}
	return []byte("HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: " + ssdpTargets[0] + "\r\nLOCATION: " + location + "\r\n\r\n")
}

var (
	actionName = regexp.MustCompile(`#(\w+)"$`)
	argument   = regexp.MustCompile(`<(New\w+)>([^<]*)</`)
)

func (d *igd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.redirect != "" {
		http.Redirect(w, r, d.redirect, http.StatusFound)
		return
	}
	if r.Method == http.MethodGet {
		d.calls = append(d.calls, "GET "+r.URL.Path)
		description := d.description
		if description == "" {
			description = d.describe()
		}
		_, _ = io.WriteString(w, description)
		return
	}
	text, _ := io.ReadAll(r.Body)
	args := make(map[string]string)
	for _, m := range argument.FindAllStringSubmatch(string(text), -1) {
		args[m[1]] = m[2]
	}
	name := actionName.FindStringSubmatch(r.Header.Get("SOAPACTION"))
	if name == nil {
		http.Error(w, "no action", http.StatusBadRequest)
		return
	}
	d.act(w, name[1], args)
}

// act carries out an action.
func (d *igd) act(w http.ResponseWriter, name string, args map[string]string) {
	port, client := args["NewExternalPort"], args["NewInternalClient"]
	d.calls = append(d.calls, strings.TrimSpace(fmt.Sprint(name, " ", port, " ", args["NewLeaseDuration"])))
	var lease uint32
	_, _ = fmt.Sscan(args["NewLeaseDuration"], &lease)
	code, out := d.fails[name], ""
	switch {
	case code != 0:
	case name == "GetExternalIPAddress":
		out = "<NewExternalIPAddress>" + d.address + "</NewExternalIPAddress>"
	case name == "GetSpecificPortMappingEntry" && d.entries[port] == "":
		code = upnpNoSuchEntry
	case name == "GetSpecificPortMappingEntry":
		out = "<NewInternalPort>51820</NewInternalPort><NewInternalClient>" + d.entries[port] + "</NewInternalClient><NewEnabled>1</NewEnabled><NewPortMappingDescription>x</NewPortMappingDescription><NewLeaseDuration>10</NewLeaseDuration>"
	case name == "DeletePortMapping" && d.entries[port] == "":
		code = upnpNoSuchEntry
	case name == "DeletePortMapping":
		delete(d.entries, port)
	case d.lease[lease] != 0:
		code = d.lease[lease]
	case name == "AddAnyPortMapping":
		d.entries["40001"] = client
		out = "<NewReservedPort>40001</NewReservedPort>"
	case name == "AddPortMapping" && d.entries[port] != "" && d.entries[port] != client:
		code = upnpConflict
	case name == "AddPortMapping":
		d.entries[port] = client
	default:
		code = upnpInvalidAction
	}
	body := fmt.Sprintf(`<u:%sResponse xmlns:u="urn:schemas-upnp-org:service:%s">%s</u:%[1]sResponse>`, name, d.service, out)
	if code != 0 {
		w.WriteHeader(http.StatusInternalServerError)
		body = fmt.Sprintf(`<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>%d</errorCode><errorDescription>no</errorDescription></UPnPError></detail></s:Fault>`, code)
	}
	_, _ = fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>%s</s:Body></s:Envelope>`, body)
}

// describe is what a usual router says of itself.
func (d *igd) describe() string {
	control := d.controlURL
	if control == "" {
		control = "/ctl"
	}
	return fmt.Sprintf(`<?xml version="1.0" encoding="iso-8859-1"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>
<URLBase>http://192.0.2.1/</URLBase>
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><friendlyName>Router</friendlyName>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><controlURL>/l3f</controlURL></service></serviceList>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType>
<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:%s</serviceType><controlURL>%s</controlURL><SCPDURL>/scpd</SCPDURL></service></serviceList>
</device></deviceList></device></deviceList></device></root>`, d.service, control)
}

// takeCalls returns what was asked since the last time.
func (d *igd) takeCalls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := d.calls
	d.calls = nil
	return all
}
