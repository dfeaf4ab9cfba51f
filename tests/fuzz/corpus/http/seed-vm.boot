PUT /api/v1/vm.boot HTTP/1.1
Host: l
Content-Length: 0

