// Package testserver runs the service as a process, for tests. The variable COUNTERSIGN has the
// path of its binary.
package testserver

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// Issuer is the issuer of the service.
	Issuer = "https://auth.test"
	// Audience is the audience of its tokens.
	Audience = "https://orders.test"
	// hangs is the longest time that a test waits.
	hangs = time.Minute
)

// Site is the folder of a service, which has the same address each time that it is started.
type Site struct {
	Address string
	file    string
}

// New creates a folder, with these settings in addition to the usual ones. It skips the test if
// there is no binary.
func New(t testing.TB, settings string) *Site {
	t.Helper()
	binary(t)
	folder := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	site := &Site{listener.Addr().String(), filepath.Join(folder, "countersign.toml")}
	text := fmt.Sprintf("issuer = '%s'\ndata_dir = '%s'\n[tokens]\ndefault_audience = '%s'\n%s",
		Issuer, filepath.Join(folder, "data"), Audience, settings)
	if err := os.WriteFile(site.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return site
}

func binary(t testing.TB) string {
	t.Helper()
	path := os.Getenv("COUNTERSIGN")
	if path == "" {
		t.Skip("COUNTERSIGN must have the path of the service's binary")
	}
	return path
}

// command returns a command of the service, without the settings in the environment of the test.
func command(t testing.TB, arguments ...string) *exec.Cmd {
	t.Helper()
	command := exec.CommandContext(t.Context(), binary(t), arguments...)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "COUNTERSIGN_") {
			command.Env = append(command.Env, variable)
		}
	}
	command.Env = append(command.Env, "COUNTERSIGN_HTTP_LISTEN=127.0.0.1:0",
		"COUNTERSIGN_SHUTDOWN__GRACE=0s")
	return command
}

// URL returns the URL of the service.
func (s *Site) URL() string { return "http://" + s.Address }

// Server is a process of the service, which ends with the test.
type Server struct {
	process *os.Process
	ended   sync.WaitGroup
}

// Start starts the service, and waits until it serves.
func (s *Site) Start(t testing.TB) *Server {
	t.Helper()
	command := command(t, "serve", "--listen", s.Address, "--config", s.file)
	output, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	server := &Server{process: command.Process}
	serving := make(chan bool, 1)
	server.ended.Go(func() {
		var log []string
		hasServed := false
		for lines := bufio.NewScanner(output); lines.Scan(); {
			var entry struct{ Message string }
			_ = json.Unmarshal(lines.Bytes(), &entry)
			if entry.Message == "serving" {
				hasServed = true
				serving <- true
			}
			log = append(log, lines.Text())
		}
		// The error is that of the signal.
		_ = command.Wait()
		if !hasServed {
			_, _ = fmt.Fprintln(os.Stderr, strings.Join(log, "\n"))
			serving <- false
		}
	})
	t.Cleanup(server.Kill)
	select {
	case isServing := <-serving:
		if !isServing {
			t.Fatal("the service has ended")
		}
	case <-time.After(hangs):
		t.Fatal("the service does not start")
	}
	return server
}

// Kill ends the process at once.
func (s *Server) Kill() {
	// It may have ended before.
	_ = s.process.Kill()
	s.ended.Wait()
}

// Suspend suspends the process, and waits until none of its threads runs.
func (s *Server) Suspend(t testing.TB) {
	t.Helper()
	if err := s.process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the service is suspended", func() bool {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.process.Pid))
		if err != nil || len(tasks) == 0 {
			return false
		}
		for _, task := range tasks {
			stat, err := os.ReadFile(task)
			// The state follows the name of the thread, which is in parentheses.
			_, state, _ := strings.Cut(string(stat), ") ")
			if err == nil && !strings.HasPrefix(state, "T") {
				return false
			}
		}
		return true
	})
}

// Resume lets a process that was suspended go on.
func (s *Server) Resume(t testing.TB) {
	t.Helper()
	if err := s.process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// Caller returns the table of a caller in the configuration, and its API key.
func Caller(t testing.TB, name, settings string) (table, key string) {
	t.Helper()
	output, err := command(t, "caller", "new", name, "--role", "validator").Output()
	if err != nil {
		t.Fatal(err)
	}
	key = regexp.MustCompile(`cs_ck_\S+`).FindString(string(output))
	hash := regexp.MustCompile(`sha256:[^"']+`).FindString(string(output))
	if key == "" || hash == "" {
		t.Fatal("there is no key in the output of `countersign caller new`")
	}
	table = fmt.Sprintf("[[callers]]\nname = '%s'\nkey_hashes = ['%s']\n%s\n", name, hash, settings)
	return table, key
}

// Eventually waits until a condition holds.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for began := time.Now(); !holds(); {
		if time.Since(began) > hangs {
			t.Fatal("not within a minute: " + what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// Certificates is a certificate authority, which writes its files into a folder.
type Certificates struct {
	folder    string
	authority *x509.Certificate
	key       *ecdsa.PrivateKey
	// CA is the certificate of the authority, in PEM.
	CA []byte
}

// NewCertificates creates an authority, and a certificate for a server on this machine.
func NewCertificates(t testing.TB) *Certificates {
	t.Helper()
	certificates := &Certificates{folder: t.TempDir()}
	certificates.CA, _ = certificates.Issue(t, "ca", &x509.Certificate{
		Subject: pkix.Name{CommonName: "authority of a test"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	certificates.Issue(t, "server", &x509.Certificate{
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	return certificates
}

// Path returns the path of a file.
func (c *Certificates) Path(name string) string { return filepath.Join(c.folder, name) }

// Issue issues a certificate, and writes NAME.pem and NAME.key. It returns both in PEM.
func (c *Certificates) Issue(t testing.TB, name string, template *x509.Certificate) (
	certificate, private []byte,
) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if c.authority == nil {
		c.authority, c.key = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.authority, key.Public(), c.key)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	private = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})
	for suffix, text := range map[string][]byte{".pem": certificate, ".key": private} {
		if err := os.WriteFile(c.Path(name+suffix), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, private
}
